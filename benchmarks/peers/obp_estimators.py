"""Off-policy estimates of Open Bandit Pipeline (obp 0.5.7), from arrays in .npz files; prints one JSON array.

The other side of benchmarks/off_policy.py; it runs in an environment with obp and imports nothing of nextitem. What the
arrays are depends on `--what`:

* `actions`: reward, action, pscore [n], action_dist and q_hat [n, actions], lambda_NAME and grid_NAME for each NAME of
  LIMITED: the lambda that we selected, and those among which obp selects by the mean squared error.
* `lists`: reward, action, whole_0, whole_1, slot_0, slot_1, above_0, above_1 [n, K]: probabilities of the whole list,
  of the slot alone, and of the slots down to this one, under the logging policy (0) and the target (1); q_hat and
  action_dist [n, K, actions].
* `bernoulli-ts`: a campaign in place of files; the probability of each item in each of the three places, items first.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
from obp import ope
from obp.policy import BernoulliTS

LIMITED = {
    "clipped-ips": (ope.InverseProbabilityWeighting, ope.InverseProbabilityWeightingTuning),
    "sg-ips": (ope.SubGaussianInverseProbabilityWeighting, ope.SubGaussianInverseProbabilityWeightingTuning),
    "switch-dr": (ope.SwitchDoublyRobust, ope.SwitchDoublyRobustTuning),
    "dros": (ope.DoublyRobustWithShrinkage, ope.DoublyRobustWithShrinkageTuning),
    "sg-dr": (ope.SubGaussianDoublyRobust, ope.SubGaussianDoublyRobustTuning),
}


def actions(data: Any) -> dict[str, float]:
    """Return the estimates from single actions."""
    inputs = {
        "reward": data["reward"],
        "action": data["action"],
        "position": np.zeros(len(data["action"]), dtype=int),  # without it, tuning Switch-DR fails
        "pscore": data["pscore"],
        "action_dist": data["action_dist"][..., None],
        "estimated_rewards_by_reg_model": data["q_hat"][..., None],
    }
    plain = {
        "ips": ope.InverseProbabilityWeighting(),
        "snips": ope.SelfNormalizedInverseProbabilityWeighting(),
        "dm": ope.DirectMethod(),
        "dr": ope.DoublyRobust(),
        "sndr": ope.SelfNormalizedDoublyRobust(),
    }
    result = {name: float(each.estimate_policy_value(**inputs)) for name, each in plain.items()}
    for name, (estimator, tuned) in LIMITED.items():
        value = float(data[f"lambda_{name}"])
        result[name] = float(estimator(lambda_=value).estimate_policy_value(**inputs))
        grid = [float(each) for each in data[f"grid_{name}"]]
        by_error = tuned(lambdas=grid, tuning_method="mse", use_bias_upper_bound=False)
        result[f"{name} tuned"] = float(by_error.estimate_policy_value_with_tuning(**inputs))
        result[f"{name} lambda"] = float(by_error.best_hyperparam)
    return result


def lists(data: Any) -> dict[str, float]:
    """Return the estimates from lists."""
    num_lists, length = data["reward"].shape
    common = {
        "slate_id": np.repeat(np.arange(num_lists), length),
        "reward": data["reward"].ravel(),
        "position": np.tile(np.arange(length), num_lists),
    }

    def pair(name: str, suffix: str) -> dict[str, Any]:
        return {
            f"pscore{suffix}": data[f"{name}_0"].ravel(),
            f"evaluation_policy_pscore{suffix}": data[f"{name}_1"].ravel(),
        }

    size = data["q_hat"].shape[2]
    cascade = ope.SlateCascadeDoublyRobust(len_list=length, n_unique_action=size)
    return {
        "ips": float(ope.SlateStandardIPS(len_list=length).estimate_policy_value(**common, **pair("whole", ""))),
        "snips": float(
            ope.SelfNormalizedSlateStandardIPS(len_list=length).estimate_policy_value(**common, **pair("whole", ""))
        ),
        "rips": float(
            ope.SlateRewardInteractionIPS(len_list=length).estimate_policy_value(**common, **pair("above", "_cascade"))
        ),
        "iips": float(
            ope.SlateIndependentIPS(len_list=length).estimate_policy_value(**common, **pair("slot", "_item_position"))
        ),
        "dr": float(
            cascade.estimate_policy_value(
                **common,
                **pair("above", "_cascade"),
                action=data["action"].ravel(),
                q_hat=data["q_hat"].ravel(),
                evaluation_policy_action_dist=data["action_dist"].ravel(),
            )
        ),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("files", nargs="+", help=".npz files; of bernoulli-ts: the campaign")
    options.add_argument("--what", choices=["actions", "lists", "bernoulli-ts"], required=True)
    arguments = options.parse_args()
    if arguments.what == "bernoulli-ts":
        policy = BernoulliTS(
            n_actions=34, len_list=3, is_zozotown_prior=True, campaign=arguments.files[0], random_state=12345
        )
        print(json.dumps(policy.compute_batch_action_dist(n_rounds=1, n_sim=100_000)[0].tolist()))
        return
    work, results = actions if arguments.what == "actions" else lists, []
    for file in arguments.files:
        with np.load(file) as data:
            results.append(work(data))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
