"""The Gymnasium environment: its checker, its invariants, and that it is the world behind the server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.simulated_shop import small_shop

from nextitem.simulation.optimum import best_lists
from nextitem.simulation.world import DAY, EnvironmentConfig, Visit, World

gymnasium = pytest.importorskip("gymnasium")
from gymnasium.utils.env_checker import check_env  # noqa: E402

from nextitem.simulation.environment import HISTORY, ShopEnv, ShopVectorEnv  # noqa: E402

SETTINGS: dict[str, Any] = {"days": 20, "new_items": 10, "leaving_items": 10}


def vector(num_envs: int = 60, **options: Any) -> ShopVectorEnv:
    settings = {**SETTINGS, **options.pop("settings", {})}
    return ShopVectorEnv(num_envs, EnvironmentConfig(**settings), shop=small_shop(), **options)


def best_actions(env: ShopVectorEnv) -> np.ndarray:
    """Return the best list of every customer."""
    who = np.arange(env.num_envs)
    return best_lists(env.world.list_problem(who, env.times)).rows + 1


@pytest.mark.filterwarnings("ignore")
def test_the_checker_of_gymnasium_passes() -> None:
    env = ShopEnv(EnvironmentConfig(**SETTINGS), shop=small_shop())
    check_env(env, skip_render_check=True)
    single = gymnasium.make(
        "nextitem.simulation.environment:nextitem/Shop-v0", config=EnvironmentConfig(**SETTINGS), shop=small_shop()
    )
    observation, _ = single.reset(seed=0)
    assert single.observation_space.contains(observation)


def test_observations_are_in_their_space_until_everybody_has_ended() -> None:
    env = vector()
    observation, _ = env.reset(seed=1)
    total = np.zeros(60)
    for _ in range(200):
        assert env.observation_space.contains(observation)
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        total += reward
        assert np.isfinite(reward).all()
        assert not (terminated & truncated).any()
        if (terminated | truncated).all():
            break
    assert (terminated | truncated).all()
    assert terminated.any()
    assert truncated.any()
    _, reward, *_, info = env.step(env.action_space.sample())
    assert not reward.any()
    assert np.isnan(info["value"]).all()


def test_the_same_seed_is_the_same_world() -> None:
    def course(seed: int) -> list[Any]:
        env = vector()
        env.reset(seed=seed)
        env.action_space.seed(0)
        return [env.step(env.action_space.sample()) for _ in range(4)]

    for (seen, reward, *_), (again, same_reward, *_) in zip(course(3), course(3), strict=True):
        assert reward.tolist() == same_reward.tolist()
        assert all((seen[name] == again[name]).all() for name in seen)
    assert any(first[1].tolist() != other[1].tolist() for first, other in zip(course(3), course(4), strict=True))


def test_a_customer_who_begins_again_has_the_same_course() -> None:
    env = vector()
    first, _ = env.reset(seed=5)
    actions = best_actions(env)
    step = env.step(actions)
    mask = np.arange(60) < 30
    again, _ = env.reset(options={"reset_mask": mask})
    assert all((again[name][mask] == first[name][mask]).all() for name in first)
    assert (again["visit"][~mask] == 2).all()
    repeated = env.step(actions)
    assert repeated[1][mask].tolist() == step[1][mask].tolist()


def test_the_environment_and_the_served_world_are_one() -> None:
    """A customer answers a list of the environment as one of a server."""
    env = vector()
    env.reset(seed=2)
    served = World(small_shop(), EnvironmentConfig(**SETTINGS, seed=2, customers=60))
    visits = [Visit(float(time), number, 1) for number, time in enumerate(env.times)]
    actions = best_actions(env)
    _, reward, _, _, info = env.step(actions)
    for visit in visits:
        answer = served.answer(visit, [served.item_ids[row] for row in actions[visit.customer] - 1])
        assert answer.clicks.sum() == reward[visit.customer]
        assert answer.click_probabilities.sum() == pytest.approx(info["value"][visit.customer])
        visits[visit.customer] = answer.next_visit
    visits = [visit for visit in visits if np.isfinite(visit.time)]
    assert len(visits) > 30
    assert [visit.time for visit in visits] == pytest.approx(env.times[[visit.customer for visit in visits]].tolist())


def test_the_best_lists_have_no_regret_and_others_do() -> None:
    env = vector(has_regret=True)
    env.reset(seed=0)
    for _ in range(3):
        *_, info = env.step(best_actions(env))
        assert np.nanmax(info["regret"]) == pytest.approx(0, abs=1e-9)
    *_, info = env.step(env.action_space.sample())
    assert np.nanmin(info["regret"]) >= 0
    assert np.nanmean(info["regret"]) > 0.3


def test_clicks_enter_the_history_in_their_order() -> None:
    env = vector(reward="purchases")
    env.reset(seed=0)
    actions = best_actions(env)
    observation, reward, *_ = env.step(actions)
    for row in range(60):
        clicked = actions[row][observation["last_clicks"][row].astype(bool)]
        if len(clicked):
            assert observation["history"][row][HISTORY - len(clicked) :].tolist() == clicked.tolist()
        assert reward[row] == (observation["actions"][row][HISTORY - len(clicked) :] == 2).sum() * bool(len(clicked))
    assert observation["last_clicks"].sum() > 30


def test_one_item_and_one_slot() -> None:
    env = ShopVectorEnv(
        5, EnvironmentConfig(days=30, new_items=0, examination=(1.0,)), shop=small_shop(), has_regret=True
    )
    env.reset(seed=0)
    _, reward, *_, info = env.step(np.full((5, 1), 7))
    assert np.isfinite(reward).all()
    assert np.isfinite(info["regret"]).all()


def test_stock_is_what_has_arrived_and_not_left() -> None:
    env = vector()
    observation, _ = env.reset(seed=0)
    assert observation["stock"].shape == (60, 160)
    world = env.world
    early = observation["stock"][env.times.argmin()]
    assert early[:150].sum() >= 148
    assert world.stock(world.end + DAY).sum() == 150
    with pytest.raises(ValueError, match="reward 'views': there are clicks, purchases, value"):
        vector(reward="views")
