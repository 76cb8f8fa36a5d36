"""Gymnasium environment: one step is one list for each customer, and the customer's way until the next visit.

Customers are those of simulation.world.World, so a policy that learns here meets the customers who also visit a server.
`ShopVectorEnv` has thousands of customers in one step; `ShopEnv` has one. An episode is a customer's time until the
customer leaves for good (terminated) or the last day is over (truncated). Each customer has an own clock.

    env = gymnasium.make_vec("nextitem.simulation.environment:nextitem/Shop-v0", num_envs=1000)

Shapes: C customers, K slots, N items, H past events.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from nextitem.data.shop.shop import Shop, generate_shop
from nextitem.data.shop.truth import Bools, Floats, Ints
from nextitem.simulation.answers import DAY
from nextitem.simulation.optimum import best_lists
from nextitem.simulation.world import EnvironmentConfig, World, WorldConfig

HISTORY = 20  # past events in an observation (H)
REWARDS = ("clicks", "purchases", "value")
CLICK, PURCHASE = 1, 2  # codes of past events; 0: none

Observation = dict[str, NDArray[Any]]


class ShopVectorEnv(VectorEnv[Observation, Any, Any]):
    """All customers of a simulated shop, one environment each.

    An action is a list: K item numbers, 1..N, best first; 0 is an empty slot. An observation contains what a shop can
    know: the time in days since the begin, the number of the visit, past clicks and purchases with item numbers, the
    last list and what was clicked of it, the country, and which items are in stock. `info` contains the truth: value
    (expected clicks of the list), best_value and regret, if asked for, appeal and satisfaction.

    An environment that has ended stays ended, with reward 0, until it is reset: `reset(options={"reset_mask": mask})`.

    Attributes:
        world: the customers and their true state.
        times: time of each customer's next visit in seconds since 1970, [C].

    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}

    def __init__(
        self,
        num_envs: int = 1000,
        config: WorldConfig | None = None,
        *,
        shop: Shop | None = None,
        reward: str = "clicks",
        has_regret: bool = False,
    ) -> None:
        """Describe the spaces; `reset` makes the customers.

        Args:
            num_envs: number of customers.
            config: settings of the world; `customers` and `seed` are replaced. None: EnvironmentConfig.
            shop: the shop; None: the data set "shop".
            reward: clicks or purchases (numbers of items), or value: expected clicks, without chance.
            has_regret: whether to search the best list of each customer at each step, for `info`.

        """
        if reward not in REWARDS:
            raise ValueError(f"reward {reward!r}: there are {', '.join(REWARDS)}")
        self.num_envs, self._reward, self._has_regret = num_envs, reward, has_regret
        self._config = (config or EnvironmentConfig()).model_copy(update={"customers": num_envs})
        self._shop = shop or _default_shop()
        self._size = len(self._config.examination)
        self._num_items = self._shop.items.height + self._config.new_items
        self.single_action_space = spaces.MultiDiscrete(np.full(self._size, self._num_items + 1))
        self.single_observation_space = self._observation_space()
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin with other customers, or, with `reset_mask` [C] of the options, let some of the same begin again.

        Args:
            seed: seed of the world; None: one by chance.
            options: reset_mask, bool [C].

        """
        mask = None if options is None else options.get("reset_mask")
        if mask is not None:
            self._restore(np.flatnonzero(mask))
            return self._observation(), self._info()
        assert not isinstance(seed, list), "the customers share one world, so they have one seed"
        super().reset(seed=seed)
        world_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self.world = World(self._shop, self._config.model_copy(update={"seed": world_seed}))
        count = self.num_envs
        self.times: Floats = self.world.first_times()
        self._visits: Ints = np.ones(count, dtype=np.int64)
        self._terminated: Bools = np.zeros(count, dtype=np.bool_)
        last = self.world.customers.last_items
        self._history: Ints = np.zeros((count, HISTORY), dtype=np.int64)
        self._actions: Ints = np.zeros((count, HISTORY), dtype=np.int64)
        self._history[:, -1], self._actions[:, -1] = last + 1, np.where(last >= 0, CLICK, 0)
        self._last_list: Ints = np.zeros((count, self._size), dtype=np.int64)
        self._last_clicks: NDArray[np.int8] = np.zeros((count, self._size), dtype=np.int8)
        self._first = {name: copy.deepcopy(value) for name, value in self._state().items()}
        return self._observation(), self._info()

    def step(self, actions: Any) -> tuple[Observation, Floats, Bools, Bools, dict[str, Any]]:
        """Show each customer a list, and return what is seen at the next visit."""
        rows = np.asarray(actions, dtype=np.int64) - 1
        active = np.flatnonzero(~self._terminated & (self.times < self.world.end))
        rewards, info = np.zeros(self.num_envs), self._info()
        if self._has_regret:
            best = np.zeros(self.num_envs)
            best[active] = best_lists(self.world.list_problem(active, self.times[active])).values
        answers = self.world.answers(active, self.times[active], self._visits[active], rows[active])
        value = answers.click_probabilities.sum(axis=1)
        rewards[active] = {
            "clicks": answers.clicks.sum(axis=1),
            "purchases": answers.purchases.sum(axis=1),
            "value": value,
        }[self._reward]
        figures = {"value": value, "appeal": answers.appeal, "satisfaction": answers.satisfaction}
        if self._has_regret:
            figures["best_value"] = np.maximum(best[active], value)
            figures["regret"] = figures["best_value"] - value
        for name, values in figures.items():
            info[name] = np.full(self.num_envs, np.nan)
            info[name][active] = values
        self._see(active, rows[active], answers.clicks, answers.purchases)
        self._terminated[active] = np.isinf(answers.next_times)
        self.times[active] = np.where(self._terminated[active], self.times[active], answers.next_times)
        self._visits[active] += 1
        is_over = ~self._terminated & (self.times >= self.world.end)
        return self._observation(), rewards, self._terminated.copy(), is_over, info

    def _see(self, active: Ints, rows: Ints, clicks: Bools, purchases: Bools) -> None:
        """Add what customers did to the observable histories."""
        self._last_list[active], self._last_clicks[active] = rows + 1, clicks
        for slot in range(rows.shape[1]):
            hit = np.flatnonzero(clicks[:, slot])
            who = active[hit]
            for table, values in (
                (self._history, rows[hit, slot] + 1),
                (self._actions, np.where(purchases[hit, slot], PURCHASE, CLICK)),
            ):
                table[who, :-1] = table[who, 1:]
                table[who, -1] = values

    def _state(self) -> dict[str, NDArray[Any]]:
        """Return the arrays with a row for each customer that change from step to step."""
        of_customers = {
            name: value for name, value in vars(self.world.customers).items() if isinstance(value, np.ndarray)
        }
        own = {
            name: getattr(self, name)
            for name in ("times", "_visits", "_terminated", "_history", "_actions", "_last_list", "_last_clicks")
        }
        return of_customers | own

    def _restore(self, customers: Ints) -> None:
        """Let some customers begin again."""
        for name, values in self._state().items():
            values[customers] = self._first[name][customers]

    def _observation(self) -> Observation:
        truth = self.world.truth
        inside = np.minimum(self.times, self.world.end)
        stock = (truth.released <= inside[:, None]) & (inside[:, None] < self.world.leaving_times)
        return {
            "time": ((inside - self.world.start) / DAY).astype(np.float32)[:, None],
            "visit": self._visits.astype(np.float32)[:, None],
            "history": self._history.copy(),
            "actions": self._actions.copy(),
            "last_list": self._last_list.copy(),
            "last_clicks": self._last_clicks.copy(),
            "country": truth.country[self.world.customers.rows].astype(np.int64),
            "stock": stock.astype(np.int8),
        }

    def _observation_space(self) -> spaces.Dict:
        items = self._num_items + 1
        return spaces.Dict(
            {
                "time": spaces.Box(0, np.inf, (1,), np.float32),
                "visit": spaces.Box(0, np.inf, (1,), np.float32),
                "history": spaces.MultiDiscrete(np.full(HISTORY, items)),
                "actions": spaces.MultiDiscrete(np.full(HISTORY, PURCHASE + 1)),
                "last_list": spaces.MultiDiscrete(np.full(self._size, items)),
                "last_clicks": spaces.MultiBinary(self._size),
                "country": spaces.Discrete(self._shop.truth.sold_in.shape[1]),
                "stock": spaces.MultiBinary(self._num_items),
            }
        )

    def _info(self) -> dict[str, Any]:
        return {"user_row": self.world.customers.rows.copy()}


class ShopEnv(gymnasium.Env[Observation, Any]):
    """One customer of a simulated shop: ShopVectorEnv with one environment, in the form of a single one."""

    metadata = {"render_modes": []}

    def __init__(self, config: WorldConfig | None = None, **options: Any) -> None:
        """Take the arguments of ShopVectorEnv but the number of customers."""
        self._all = ShopVectorEnv(1, config, **options)
        self.action_space, self.observation_space = self._all.single_action_space, self._all.single_observation_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin with another customer, by the seed."""
        super().reset(seed=seed)
        observation, info = self._all.reset(seed=int(self.np_random.integers(2**31)) if seed is None else seed)
        return _first(observation), _first(info)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Show the customer a list, and return what is seen at the next visit."""
        observation, reward, terminated, truncated, info = self._all.step(np.asarray(action)[None])
        return _first(observation), float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first(info)


def _first(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value[0] for name, value in values.items()}


@cache
def _default_shop() -> Shop:
    return generate_shop()


gymnasium.register(
    "nextitem/Shop-v0",
    entry_point="nextitem.simulation.environment:ShopEnv",
    vector_entry_point="nextitem.simulation.environment:ShopVectorEnv",
)
