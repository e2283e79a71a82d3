"""What the columns of rounds.jsonl, clients.jsonl and summary.json mean, and in which units.

Meanings of records' columns are those in the docstrings of `RoundRecord` and `ClientRecord`.
"""

import inspect
import re
from collections.abc import Iterator

from tracking.record import ClientRecord, RoundRecord

# What a run's summary says beside totals, which are of a round's columns.
SUMMARY = {
    "final_accuracy": "accuracy after the last round",
    "best_accuracy": "accuracy after the best round",
    "best_round": "the best round, from 1",
    "rounds": "finished rounds; of the configuration: wanted ones",
    "num_failed": "failures of clients over all rounds",
    "client_params": "parameters of the network on the device",
    "client_model_bytes": "bytes of the network on the device",
    "client_flops_per_sample": "operations of a forward pass on the device, a multiply-add is two",
    "client_bops_per_sample": "the same times the bits of both operands",
    "quantized_share": "share of the multiply-adds with both operands below 32 bits",
    "mean_weight_bits": "bits of a weight, over the multiply-adds",
    "mean_act_bits": "bits of an input, over the multiply-adds",
    "total_bytes": "bytes up and down until and with the round",
    "run": "the run's folder, relative to those that were loaded",
}
# What schedules and fleets add to a round.
ADDED = {
    "staleness_mean": "server steps between begin and arrival, mean of the step's updates",
    "staleness_max": "the same of the oldest",
    "in_flight": "clients at work when the server step ends",
    "left": "clients that left before their end",
    "stale": "updates that came too late to be of use",
    "cut_short": "clients that trained fewer batches, to end by the deadline",
}
# A name ends so, and is in these units.
UNITS = (
    (r"_s(_to_target)?$", "s"),
    (r"_j(_to_target)?$", "J"),
    (r"bytes(_up|_down)?(_to_target)?$", "bytes"),
    (r"bytes_(up|down)_per_sample$|_bytes$", "bytes"),
    (r"(^|_)accuracy$|_share$", "share"),
    (r"_bits$", "bits"),
    (r"flops_per_sample$|bops_per_sample$", "operations"),
)


def meaning_of(column: str, of_client: bool = False) -> str:
    """Return what a column says; empty where it is a method's own or a key.

    Args:
        column: its name.
        of_client: whether it is of clients.jsonl, where names of a round's mean something else.
    """
    kind = ClientRecord if of_client else RoundRecord
    said = {**SUMMARY, **ADDED, **dict(_attributes(kind))}
    if column in said:
        return said[column]
    for prefix, words in (("total_", "over all rounds"), ("final_", "of the last round")):
        name = column.removeprefix(prefix)
        if name != column and name in said:
            return f"{said[name]}; {words}"
    name = column.removesuffix("_to_target")
    return (
        f"{said[name]}; until target_accuracy was reached"
        if name != column and name in said
        else ""
    )


def unit_of(column: str) -> str:
    """Return a column's unit; empty for what is counted or has none."""
    return next((unit for pattern, unit in UNITS if re.search(pattern, column)), "")


def _attributes(kind: type) -> Iterator[tuple[str, str]]:
    """Names and meanings of the section Attributes in a docstring, each on one line."""
    text = inspect.getdoc(kind) or ""
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text.partition("Attributes:\n")[2], re.M)
    for name, words in found:
        plain = re.sub(r"\s+", " ", words).rstrip(".").replace("``", "")
        yield name, plain
