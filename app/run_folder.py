"""A finished run's folder, read back: its configuration and its weights."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from app import experiment
from app.config.composition import from_omegaconf
from app.config.schema import Config
from app.server import MODEL
from strategies.client.training import load_arrays


def load_config(run: Path) -> Config:
    """Return the configuration that a run stored, without the weights that it began with.

    It has others now, and those may be gone.

    Raises:
        ValueError: there is no finished run.
    """
    for needed in (".hydra/config.yaml", MODEL, "summary.json"):  # the last that a run writes
        if not (run / needed).exists():
            raise ValueError(f"{run}: no finished run there, {needed} is missing")
    stored = OmegaConf.load(run / ".hydra" / "config.yaml")
    for key in ("weights", "replace_head"):
        stored.model.pop(key, None)
    return from_omegaconf(OmegaConf.merge(Config, stored))  # type: ignore[arg-type]


def refuse_private(config: Config, run: Path) -> None:
    """Refuse a run whose clients keep halves of their own: nobody has tested their average.

    Raises:
        ValueError: names the strategy.
    """
    kind = experiment.strategy_class(config)
    if kind.is_private:
        raise ValueError(
            f"{run}: strategy={config.strategy['name']}: each client has a half of its own; takes "
            "a run that trains one network for all"
        )


def load_weights(run: Path) -> dict[str, Tensor]:
    """Return a run's final weights by their names.

    Raises:
        ValueError: the file is damaged.
    """
    path = run / MODEL
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: is damaged: {error}") from error


def fill(model: nn.Module, weights: Mapping[str, Tensor], run: Path) -> nn.Module:
    """Return ``model`` with a run's weights, in evaluation mode.

    Raises:
        ValueError: they are another network's, or there are more.
    """
    beside = sorted(weights.keys() - model.state_dict().keys())
    is_quantized = any("_quantizer." in name for name in beside)
    if beside and not is_quantized and model.state_dict().keys() <= weights.keys():
        raise ValueError(
            f"{run}: its method trains more than the network ({', '.join(beside[:3])}); takes "
            "a run of the network alone, as of fedavg, oqfl or splitfed_v1"
        )
    try:
        load_arrays(model, weights)
    except ValueError as error:
        raise ValueError(
            f"{run / MODEL}: not the model of this run's configuration: {error}"
        ) from error
    return model.eval()
