"""Binarized networks: signs for weights and activations, trained straight through.

Hubara et al. 2016 (arXiv 1602.02830). A weight keeps a latent float value, which the optimizer
moves and `clip_latent` keeps in [−1, 1]; the layer computes with its sign.

    sign(x) = +1 where x ≥ 0, else −1
    ∂sign/∂x ≈ 1 where |x| ≤ 1, else 0                    `clip`
               2 − 2|x| where |x| ≤ 1, else 0             `approx`, Bi-Real Net (arXiv 1808.00278)
               1 − tanh²(x)                               `tanh`, as in IR-Net (arXiv 1909.10788)

The estimator is a choice for activations. Weights have `clip`: the others are small or 0 at ±1,
where latent weights end up and would stay.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.autograd.function import FunctionCtx

ESTIMATORS = ("clip", "approx", "tanh")

_hardtanh_backward = torch.ops.aten.hardtanh_backward.default
_tanh_backward = torch.ops.aten.tanh_backward.default


@dataclass(frozen=True)
class BinarySpec:
    """How `binarize` rewrites a model.

    Attributes:
        estimator: gradient of the activations' sign: ``clip``, ``approx`` or ``tanh``.
        scale: multiply each output channel by the mean |latent weight| of its filter, as XNOR-Net
            (arXiv 1603.05279) does.
        normalise_input: scale each sample of the network's input to mean 0 and variance 1. A filter
            of ±1 cannot weigh its taps: without this a sample's mean moves its sums, and a flipped
            sign the whole channel.
    """

    estimator: str = "clip"
    scale: bool = False
    normalise_input: bool = True

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator={self.estimator}: takes {', '.join(ESTIMATORS)}")


def sign(x: Tensor, estimator: str = "clip") -> Tensor:
    """±1 like ``x``, any shape; +1 at 0 and −0, −1 at NaN. Gradients as the module says."""
    signs: Tensor = _Sign.apply(x, estimator)  # type: ignore[no-untyped-call]
    return signs


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, estimator: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.estimator = estimator  # type: ignore[attr-defined]
        return (x >= 0).to(x.dtype).mul_(2).sub_(1)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        estimator = ctx.estimator  # type: ignore[attr-defined]
        if estimator == "approx":
            return grad * x.abs().mul_(-2).add_(2).clamp_(min=0), None
        if estimator == "tanh":
            return _tanh_backward(grad, x.tanh()), None
        bound = 1 + torch.finfo(x.dtype).eps  # hardtanh's backward leaves its bounds out
        return _hardtanh_backward(grad, x, -bound, bound), None


class Sign(nn.Module):
    """`sign` as a layer; keeps the shape."""

    bits = 1

    def __init__(self, estimator: str = "clip") -> None:
        super().__init__()
        self.estimator = estimator

    def forward(self, x: Tensor) -> Tensor:
        """±1, like ``x``."""
        return sign(x, self.estimator)

    def extra_repr(self) -> str:
        """Show the gradient in the model's printout."""
        return self.estimator


class Signed(nn.Identity):
    """A layer's `input_quantizer` that says: the input is ±1 already. Never called."""

    bits = 1


class BinaryLayer(nn.Module):
    """What the binary layers share. `weight` is latent; there is no bias."""

    weight: Tensor
    weight_quantizer: Sign
    input_quantizer: Signed | None
    input_norm: nn.GroupNorm | None
    scaled: bool

    def normalised(self, x: Tensor) -> Tensor:
        """``x`` with each sample scaled to mean 0 and variance 1, where that is wanted."""
        return x if self.input_norm is None else self.input_norm(x)

    def rescaled(self, output: Tensor) -> Tensor:
        """``output`` times the mean |latent weight| of each channel, where that is wanted.

        After the sum and not in the weights, so that the sum stays an exact integer.
        """
        if not self.scaled:
            return output
        scale = self.weight.abs().flatten(1).mean(1)  # (C',)
        if not isinstance(self, nn.Linear):
            scale = scale.view(-1, *[1] * (self.weight.dim() - 2))
        return output * scale


class BinaryConv1d(BinaryLayer, nn.Conv1d):
    """Conv1d with the signs of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) → (B, C', L')."""
        x, weight = self.normalised(x), self.weight_quantizer(self.weight)
        return self.rescaled(self._conv_forward(x, weight, None))


class BinaryConv2d(BinaryLayer, nn.Conv2d):
    """Conv2d with the signs of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H', W')."""
        x, weight = self.normalised(x), self.weight_quantizer(self.weight)
        return self.rescaled(self._conv_forward(x, weight, None))


class BinaryLinear(BinaryLayer, nn.Linear):
    """Linear with the signs of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in) → (B, out)."""
        return self.rescaled(F.linear(self.normalised(x), self.weight_quantizer(self.weight)))


def binary_layers(model: nn.Module) -> Iterator[tuple[str, BinaryLayer]]:
    """Each binary layer with its name."""
    for name, module in model.named_modules():
        if isinstance(module, BinaryLayer):
            yield name, module


@torch.no_grad()
def clip_latent(model: nn.Module) -> None:
    """Clip the latent weights of ``model`` to [−1, 1] in place; to be called after each step."""
    weights = [layer.weight.data for _, layer in binary_layers(model)]
    if weights:
        torch._foreach_clamp_min_(weights, -1)
        torch._foreach_clamp_max_(weights, 1)


# The rewrite ---------------------------------------------------------------------------------

_LAYERS: dict[type[nn.Module], tuple[type[BinaryLayer], type[nn.Module]]] = {
    nn.Conv1d: (BinaryConv1d, nn.BatchNorm1d),
    nn.Conv2d: (BinaryConv2d, nn.BatchNorm2d),
    nn.Linear: (BinaryLinear, nn.BatchNorm1d),
}
_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus,
)  # fmt: skip
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_OTHER_NORMS = (nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
_GO = (*_ACTIVATIONS, *_DROPOUTS, nn.Identity)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
_IN_CHAIN = (*_GO, *_BATCH_NORMS, *_OTHER_NORMS, *_MAX_POOLS, nn.AvgPool1d, nn.AvgPool2d)
_KEEP_SIGNS = (
    *_MAX_POOLS, nn.Flatten, *_DROPOUTS, nn.Identity, F.max_pool1d, F.max_pool2d, torch.flatten,
    torch.cat, "flatten", "view", "reshape", "squeeze", "unsqueeze", "transpose", "permute",
    "contiguous",
)  # fmt: skip
_UNFIT_AS_FUNCTIONS = {
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "elu", "selu", "celu", "gelu",
    "silu", "mish", "hardswish", "hardtanh", "tanh", "sigmoid", "softplus", "dropout", "dropout1d",
    "dropout2d", "avg_pool1d", "avg_pool2d", "batch_norm", "group_norm", "conv1d", "conv2d",
    "linear",
}  # fmt: skip


def binarize(
    model: nn.Module, spec: BinarySpec | None = None, sign_output: bool = True
) -> nn.Module:
    """Return a copy of ``model`` with binary weights and ±1 activations; batch norm stays real.

    - Layers of exactly the types Conv1d, Conv2d and Linear compute with signs, under their names,
      without bias. The layer that sees the network's input sees reals, normalised per sample.
    - Every activation becomes a sign. What follows it of pooling and normalisation comes before
      the sign; where neither it nor the layer before it is followed by normalisation, a batch norm
      is put right before the sign. Group and instance norms become batch norms: only those fold
      into thresholds. The sign sits where the last of activation, pooling and norm was:
      ``stage1.pool`` becomes ``stage1.pool.pool``, ``stage1.pool.norm`` and ``stage1.pool.sign``.
    - A layer without activation that feeds another, or the output, gets batch norm and sign, too.
    - Dropout goes: a 0 has no sign.

    Global average pooling averages signs. A layer after it, or after a sum without activation, sees
    reals. Sums get no batch norm of their own.

    Args:
        model: a network, or the client's half of one, that torch.fx can trace and whose activations
            are modules.
        spec: gradient, scaling factors, input; ``BinarySpec()`` where None.
        sign_output: whether the output is ±1, as at a cut. False for a whole network: what its
            last layer gives passes batch norm only, and is the logits.

    Raises:
        ValueError: something in the model has no binary form; says what.
    """
    spec = spec or BinarySpec()
    model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    graph = _traced(model, modules)
    roles = _roles(graph, modules, sign_output)
    signed = _signed(graph, modules, roles)
    raw = _raw(graph, modules)
    result = next(iter(reversed(graph.nodes))).args[0]
    if sign_output and result not in signed:
        raise ValueError(f"the output, {result}, is not ±1: cut after an activation or a layer")
    for node in graph.nodes:
        module = _called(node, modules)
        if module is not None and type(module) in _LAYERS:
            (parent,) = node.all_input_nodes
            _rewrite(module, spec, parent in signed, spec.normalise_input and parent in raw)
    like = next(model.parameters())
    for path, role in roles.items():
        replacement = role.build(modules[path], spec).to(like.device, like.dtype)
        model.set_submodule(path, replacement.train(modules[path].training))
    return model


def _rewrite(layer: nn.Module, spec: BinarySpec, is_signed: bool, normalises: bool) -> None:
    """Turn ``layer`` into its binary class; what its input is, and whether it is normalised."""
    layer.__class__ = _LAYERS[type(layer)][0]
    assert isinstance(layer, BinaryLayer)
    layer.register_parameter("bias", None)
    layer.scaled = spec.scale
    layer.weight_quantizer = Sign()
    layer.input_quantizer = Signed() if is_signed else None
    in_channels = layer.weight.shape[1] * getattr(layer, "groups", 1)
    layer.input_norm = nn.GroupNorm(1, in_channels, affine=False) if normalises else None
    layer.weight.data.clamp_(-1, 1)


@dataclass(frozen=True)
class _Role:
    """What becomes of a module.

    Attributes:
        goes: it becomes nothing itself.
        replaced_by: class of the batch norm that replaces it.
        norm: class of the batch norm put after it.
        channels: of these.
        signs: whether a sign comes last.
    """

    goes: bool = False
    replaced_by: type[nn.Module] | None = None
    norm: type[nn.Module] | None = None
    channels: int = 0
    signs: bool = False

    def build(self, module: nn.Module, spec: BinarySpec) -> nn.Module:
        """What stands in the place of ``module``."""
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if self.replaced_by is not None:
            parts["norm"] = self.replaced_by(self.channels)
        elif not self.goes:
            kind = "layer" if isinstance(module, BinaryLayer) else "pool"
            parts["norm" if isinstance(module, _BATCH_NORMS) else kind] = module
        if self.norm is not None:
            parts["norm"] = self.norm(self.channels)
        if self.signs:
            parts["sign"] = Sign(spec.estimator)
        if not parts:
            return nn.Identity()
        return next(iter(parts.values())) if len(parts) == 1 else nn.Sequential(parts)


def _traced(model: nn.Module, modules: Mapping[str, nn.Module]) -> fx.Graph:
    """The operations of ``model``; raises ValueError for what has no binary form."""
    if any(isinstance(module, BinaryLayer | Sign) for module in modules.values()):
        raise ValueError("the model is binarized already")
    if type(model) in _LAYERS:
        raise ValueError("binarize takes a network: put the layer into an nn.Sequential")
    for path, module in modules.items():
        known = type(module) in _LAYERS or isinstance(module, _IN_CHAIN)
        if not known and any(p is not None for p in module._parameters.values()):
            raise ValueError(f"{path or 'the model'}: {type(module).__name__} has no binary form")
    try:
        with torch.random.fork_rng(devices=[]):
            graph = fx.Tracer().trace(copy.deepcopy(model))
    except Exception as error:  # whatever somebody else's forward raises when given a proxy
        raise ValueError(f"binarize takes a network that torch.fx can trace: {error}") from error
    for node in graph.nodes:
        name = getattr(node.target, "__name__", node.target)
        if node.op in ("call_function", "call_method") and name in _UNFIT_AS_FUNCTIONS:
            raise ValueError(f"{node}: binarize takes {name} as a module, not as a function")
    if not any(type(module) in _LAYERS for module in modules.values()):
        raise ValueError("the model has no Conv1d, Conv2d or Linear layer to binarize")
    return graph


def _roles(
    graph: fx.Graph, modules: Mapping[str, nn.Module], sign_output: bool
) -> dict[str, _Role]:
    """What becomes of each module in the chain after a layer, or after an activation elsewhere."""
    roles: dict[str, _Role] = {}
    calls: dict[str, int] = {}
    seen: set[fx.Node] = set()

    def give(node: fx.Node, role: _Role) -> None:
        path = str(node.target)
        calls[path] = calls.get(path, 0) + 1
        has_state = role.channels or type(modules[path]) in _LAYERS
        if roles.setdefault(path, role) != role or (calls[path] > 1 and has_state):
            raise ValueError(f"{path} is called {calls[path]} times: give each call a module")

    for node in graph.nodes:
        module = _called(node, modules)
        is_layer = module is not None and type(module) in _LAYERS
        if node in seen or not (is_layer or isinstance(module, _IN_CHAIN)):
            continue
        chain = [node, *_chain(node, modules)]
        seen |= set(chain)
        parts = [modules[str(part.target)] for part in chain]
        after = _next(chain[-1], modules)
        ends = after is not None and after.op == "output"
        feeds = ends or (after is not None and _what(after, modules) in _LAYERS)
        is_active = any(isinstance(part, _ACTIVATIONS) for part in parts)
        is_normed = any(isinstance(part, (*_BATCH_NORMS, *_OTHER_NORMS)) for part in parts)
        signs = is_active or (is_layer and feeds and (sign_output or not ends))
        norm, width = _norm_after(module)
        for part_node, part in zip(chain, parts, strict=True):
            is_last = part_node is chain[-1]
            is_other = isinstance(part, _OTHER_NORMS)
            if is_other and norm is None:
                raise ValueError(f"{part_node.target}: takes group or instance norm after a layer")
            puts = is_last and norm is not None and not is_normed and (signs or ends)
            role = _Role(
                goes=isinstance(part, _GO) and (signs or isinstance(part, _DROPOUTS)),
                replaced_by=norm if is_other else None,
                norm=norm if puts else None,
                channels=width if puts or is_other else 0,
                signs=signs and is_last,
            )
            give(part_node, role)
    return {path: role for path, role in roles.items() if role != _Role()}


def _norm_after(module: nn.Module | None) -> tuple[type[nn.Module] | None, int]:
    """The class of a batch norm after a layer and its channels; none after anything else."""
    if module is None or type(module) not in _LAYERS:
        return None, 0
    weight = module.weight
    assert isinstance(weight, Tensor)
    return _LAYERS[type(module)][1], weight.shape[0]


def _chain(node: fx.Node, modules: Mapping[str, nn.Module]) -> list[fx.Node]:
    """The activation, norms, pooling and dropout right after ``node``, while nothing else uses."""
    chain = []
    while len(node.users) == 1:
        node = next(iter(node.users))
        if not isinstance(_called(node, modules), _IN_CHAIN):
            break
        chain.append(node)
    return chain


def _next(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node | None:
    """What gets the result of ``node``, flattened or so; None where several do."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        if _what(node, modules) not in _KEEP_SIGNS:
            return node
    return None


def _signed(
    graph: fx.Graph, modules: Mapping[str, nn.Module], roles: Mapping[str, _Role]
) -> set[fx.Node]:
    """The operations of the rewritten network whose result is ±1."""
    signed: set[fx.Node] = set()
    for node in graph.nodes:
        role = roles.get(str(node.target)) if node.op == "call_module" else None
        parents = node.all_input_nodes
        relevant = parents if node.target is torch.cat else parents[:1]  # the others are sizes
        passes = _what(node, modules) in _KEEP_SIGNS or (role is not None and role == _GONE)
        if (role is not None and role.signs) or (
            passes and relevant and all(parent in signed for parent in relevant)
        ):
            signed.add(node)
    return signed


_GONE = _Role(goes=True)


def _raw(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> set[fx.Node]:
    """The network's input, also flattened or so."""
    raw: set[fx.Node] = set()
    for node in graph.nodes:
        passes = _what(node, modules) in _KEEP_SIGNS and node.all_input_nodes[0] in raw
        if node.op == "placeholder" or passes:
            raw.add(node)
    return raw


def _called(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    return modules[str(node.target)] if node.op == "call_module" else None


def _what(node: fx.Node, modules: Mapping[str, nn.Module]) -> object:
    """The class of the module, the function, or the method's name; None for what is no call."""
    if node.op == "call_module":
        return type(modules[str(node.target)])
    return node.target if node.op in ("call_function", "call_method") else None
