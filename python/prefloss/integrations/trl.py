"""TRL's `RewardTrainer` with the loss of this package: exact accumulation, and metrics that are read at `log()` alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..paired import bradley_terry_loss_stacked
from ..stats import PairStats
from ..sums import total_of

try:
    import trl
    from transformers.trainer_pt_utils import find_batch_size
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] not in ("trl", "transformers", "accelerate", "datasets"):
        raise
    raise ImportError(
        f'prefloss.integrations.trl needs {error.name}, which is not installed: pip install "prefloss[trl]"'
    ) from error

__all__ = ["RewardTrainer"]

HELD = 64  # statistics of so many micro-batches are held before they are added up


class RewardTrainer(trl.RewardTrainer):
    """`trl.RewardTrainer` with the loss of prefloss. Arguments, data and `RewardConfig` are the same: change only the import.

    >>> from prefloss.integrations.trl import RewardTrainer

    What is different:

    - **Accumulation is exact.** A step's loss is the mean over all its pairs, on all processes, however they are split into
      micro-batches. TRL takes the mean of the means of micro-batches, in which pairs of a short one weigh more. Where all
      micro-batches have the same number of pairs, both give the same.
    - **Nothing waits for the device** in a micro-batch. TRL reads six numbers in each, and gathers them from all processes; here
      they are gathered and read once, when something is logged.
    - **Metrics are those of all pairs since the last log**: `accuracy`, `margin`, `mean_reward`, and `min_reward` and `max_reward`,
      the least and the greatest reward. TRL has the mean of these numbers over the micro-batches. `num_tokens` is as in TRL.
    - **New metrics**: `loss_standard_error`, of the mean loss of these pairs without centring (nan for a single pair), and
      `tie_rate`, the share of pairs with two equal rewards; `accuracy` counts them as wrong.
    - Half-precision rewards are subtracted in float32. A column `margin` is not passed to the model.

    In an evaluation on several processes, accelerate repeats some pairs to fill the last batch. They are left out of the metrics;
    `eval_loss` is computed by Trainer, as in TRL.

    Raises:
        ImportError: where trl is missing, when this module is imported: `pip install "prefloss[trl]"`.
    """

    # Trainer must not divide by the number of micro-batches: the loss has been divided by the pairs of all of them.
    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sums: dict[str, list[Tensor]] = {"train": [], "eval": []}
        self._train_tokens: Tensor | int = 0

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of a step, and the number of their pairs; with several processes, the mean number over these."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        pairs = sum(_rows(batch) // 2 for batch in samples)
        if self.accelerator.num_processes == 1:
            return samples, pairs or None
        # The gradients of the processes are averaged. A fill, because a copy from the host could wait.
        everyone = self.accelerator.gather(torch.full((1,), float(pairs), device=self.accelerator.device))
        return samples, everyone.mean()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a micro-batch [chosen...; rejected...]: its sum over `num_items_in_batch`; the mean where that is None."""
        outputs = model(**{name: value for name, value in inputs.items() if name != "margin"}, use_cache=False)
        logits = outputs[0] if isinstance(outputs, tuple) else outputs.logits
        rewards, margin = logits.squeeze(-1), inputs.get("margin")
        loss, stats = bradley_terry_loss_stacked(
            rewards,
            margin=margin,
            center_rewards_coefficient=self.args.center_rewards_coefficient,
            denominator=num_items_in_batch,
            return_stats=True,
        )
        first_time = self._first_time(len(rewards) // 2)
        if first_time is not None:
            weight = first_time.to(rewards.device)
            _, stats = bradley_terry_loss_stacked(rewards.detach(), margin=margin, weight=weight, return_stats=True)
        self._note(stats, inputs.get("attention_mask"))
        if not return_outputs:
            return loss
        # Trainer takes the first entry of a tuple for the loss.
        return loss, (loss, *outputs) if isinstance(outputs, tuple) else outputs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in TRL, with the metrics of all pairs since the last log. What users log themselves is passed on as it is."""
        # Those of Trainer, which all processes come to; users may log on one of them alone.
        if "learning_rate" in logs or any(name.endswith("_runtime") for name in logs):
            mode = self._mode()
            self._metrics[mode].update({name: [value] for name, value in self._gathered(mode).items()})
        super().log(logs, start_time)

    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _first_time(self, pairs: int) -> Tensor | None:
        """Which pairs of an evaluation's last batch have not been there before; None where all have not.

        Accelerate fills up the last batch of all processes, which lie in it one after the other, with pairs that have been there.
        """
        state = self.accelerator.gradient_state
        if self.model.training or self.accelerator.num_processes == 1 or not state.end_of_dataloader:
            return None
        place = self.accelerator.process_index * pairs + torch.arange(pairs, device="cpu")
        return place < state.remainder if state.remainder > 0 else None

    def _note(self, stats: PairStats, attention_mask: Tensor | None) -> None:
        mode = self._mode()
        held = self._sums[mode]
        held.append(stats.sums)
        if len(held) == HELD:  # or they would never end where nothing is logged
            self._sums[mode] = [total_of(torch.stack(held))]
        if mode == "train" and attention_mask is not None:
            self._train_tokens = self._train_tokens + attention_mask.detach().sum()

    def _gathered(self, mode: str) -> dict[str, float]:
        """The metrics of all processes, and nothing held any more."""
        device = self.accelerator.device
        held, self._sums[mode] = self._sums[mode], []
        mine = total_of(torch.stack(held)) if held else PairStats.zero(device).sums
        tokens, self._train_tokens = self._train_tokens, 0
        mine = torch.cat([mine, torch.as_tensor(tokens, dtype=mine.dtype, device=device).reshape(1)])
        everyone = self.accelerator.gather(mine.unsqueeze(0)).cpu()  # the one time that the host waits
        self._total_train_tokens += int(everyone[:, -1].sum()) // self._tp_size
        stats = PairStats(total_of(everyone[:, :-1]))
        if stats.count == 0:
            return {}
        return {
            "num_tokens": self._total_train_tokens,
            "accuracy": stats.accuracy,
            "tie_rate": stats.tie_rate,
            "margin": stats.mean_margin,
            "loss_standard_error": stats.standard_error,
            "min_reward": stats.min_reward,
            "mean_reward": (stats.chosen_mean + stats.rejected_mean) / 2,
            "max_reward": stats.max_reward,
        }


def _rows(batch: dict[str, Any]) -> int:
    """The responses of a micro-batch, two a pair; margins have one a pair."""
    rows: int = find_batch_size({name: value for name, value in batch.items() if name != "margin"})
    return rows
