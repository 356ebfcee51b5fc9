r"""Low-rank adaptation: the encoder keeps its weights, small matrices beside its linear layers learn.

A layer :math:`W x + b` becomes :math:`W x + b + \frac{\alpha}{r} B A x`; A is random and B zero at first, A has
:math:`r` rows and B as many columns. The package peft puts them in; what is written are plain weights, :math:`W +
\frac{\alpha}{r} B A`, so that nothing later needs it.

Reference: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from medssl.ops.limits import expect
from medssl.types import UserError

if TYPE_CHECKING:
    from medssl.encoders.base import Encoder
    from medssl.heads.base import Network


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation of the encoder.

    Attributes:
        rank: Rank of the matrices A and B, such as 8; 0 disables them and trains the encoder itself.
        alpha: Strength of the adaptation, above 0; divided by the rank.
        dropout: Probability of dropping an input value of the matrices, 0 to below 1.
        modules: Last names of the linear layers to adapt: "qkv" and "proj" are the attention of a vision transformer,
            "fc1" and "fc2" its MLP.
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    modules: tuple[str, ...] = ("qkv", "proj")

    def __post_init__(self) -> None:
        for name, good, what in (
            ("rank", self.rank >= 0, "at least 0 (0 leaves it out)"),
            ("alpha", self.alpha > 0, "above 0"),
            ("dropout", 0 <= self.dropout < 1, "from 0 to below 1"),
            ("modules", len(self.modules) > 0, "one name at least"),
        ):
            expect(good, f"optimizer.lora.{name}", getattr(self, name), what)


def adapt(encoder: Encoder, settings: LoRA) -> str:
    """Freezes an encoder and puts small matrices beside its linear layers; does nothing for rank 0.

    Statistics of batch norms, where an encoder has them, go on following the data.

    Returns:
        What the first line of a run tells.

    Raises:
        UserError: peft is not installed, or the encoder has no linear layer of these names.
    """
    if settings.rank == 0:
        return ""
    linear = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    names = [name for name in linear if name.rpartition(".")[2] in settings.modules]
    if not names:
        available = ", ".join(sorted({name.rpartition(".")[2] for name in linear})) or "none"
        message = (
            f"optimizer.lora: {type(encoder).__name__} has no linear layers named {' or '.join(settings.modules)} (it "
            f"has: {available}); name others in optimizer.lora.modules, or choose another optimizer"
        )
        raise UserError(message)
    try:
        import peft
    except ImportError as error:
        message = f"optimizer.lora needs the package peft ({error}): pip install 'medssl[lora]'"
        raise UserError(message) from error
    peft.inject_adapter_in_model(
        peft.LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=names
        ),
        encoder,
    )
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    count = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
    return f"the encoder is frozen; {count} values of rank {settings.rank} beside {len(names)} of its layers learn"


def merged(network: Network) -> Network:
    """A copy of the network with plain layers that answer alike; the network itself where nothing was adapted."""
    if not any(_is_adapted(module) for module in network.modules()):
        return network
    plain = copy.deepcopy(network)
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if _is_adapted(child):
                layer: Any = child
                layer.merge()
                setattr(parent, name, layer.get_base_layer())
    return plain


def _is_adapted(module: nn.Module) -> bool:
    """Whether a layer has small matrices beside it; told without importing peft."""
    return hasattr(module, "lora_A") and hasattr(module, "base_layer")
