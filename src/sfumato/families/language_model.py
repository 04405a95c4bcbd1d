"""Networks around a language model of transformers, which Janus-Pro and SimpleAR are.

The language model is transformers' own: its modules, weights, names and arithmetic. Only its loop over the layers is
ours, so that masks and memory are those of all next-token generators.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.errors import UserError
from sfumato.families.next_token_network import NextTokenNetwork
from sfumato.nn.attention import KeyValueCache, Slot

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of a block, which get the adapters."""


class LanguageModelNetwork(NextTokenNetwork):
    """A network around a language model, which reads a prompt and continues it with an image.

    The text embedding is frozen: images are drawn from a few of its rows only.
    """

    def __init__(self, kind: Literal["Llama", "Qwen2"], shape: Any):
        """Create the language model with initial weights.

        Args:
            kind: its name in transformers.
            shape: its shape, a dataclass with the fields that both families have.

        Raises:
            UserError: transformers is not installed.
        """
        super().__init__()
        self.depth, self.model = shape.depth, build_model(kind, shape)
        self.model.embed_tokens.requires_grad_(False)

    @property
    def last_norm(self) -> Any:
        """The RMS norm after the blocks."""
        return self.model.norm

    def embed_condition(self, condition: Int[Tensor, "R P"]) -> Float[Tensor, "R P C"]:
        """Embed text tokens."""
        return self.model.embed_tokens(condition)

    def run_blocks(
        self,
        x: Float[Tensor, "R T C"],
        prefix: int,
        mask: Bool[Tensor, "R 1 T T"] | None,
        caches: Sequence[KeyValueCache] | None,
        slot: Slot | None,
    ) -> Float[Tensor, "R T C"]:
        """Run the layers of the language model, one by one; see `NextTokenNetwork`.

        Padding counts as positions, because attention sees differences only.
        """
        if slot is None:
            places = torch.arange(x.shape[1], device=x.device)[None]
        else:
            places, mask = slot.position[None], slot.mask
        rotation = self.model.rotary_emb(x, places)
        for number, layer in enumerate(self.model.layers):
            cache = None if caches is None else LayerCache(caches[number], slot)
            # The cache is the fourth argument in all versions of transformers, under different names.
            x = layer(x, mask, places, cache, position_embeddings=rotation)
        return x


class LayerCache:
    """The memory of one layer, in the form in which transformers asks for it."""

    def __init__(self, cache: KeyValueCache, slot: Slot | None):
        self.cache, self.slot = cache, slot

    def update(
        self, keys: Float[Tensor, "R H T d"], values: Float[Tensor, "R H T d"], *_: Any, **__: Any
    ) -> tuple[Float[Tensor, "R H N d"], Float[Tensor, "R H N d"]]:
        """Add keys and values; return all so far.

        Under autocast, the rotary embedding leaves the keys in float32. Attention would round them as is done here.
        """
        keys = keys.type_as(values)
        return self.cache.append(keys, values) if self.slot is None else self.cache.put(keys, values, self.slot)


def import_transformers() -> Any:
    """Return the module, whose import takes seconds.

    Raises:
        UserError: it is not installed.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise UserError(
            "model: Janus-Pro and SimpleAR need transformers; install it with: pip install 'sfumato[text]'"
        ) from error
    return transformers


def build_model(kind: Literal["Llama", "Qwen2"], shape: Any) -> Any:
    """Return a language model of transformers, without a head, with initial weights.

    Raises:
        UserError: transformers is not installed.
    """
    transformers = import_transformers()
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=shape.text_vocab_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads or shape.num_heads,
        intermediate_size=shape.feed_forward_width,
        rms_norm_eps=shape.norm_eps,
        rope_theta=shape.rope_base,
        attn_implementation="sdpa",
    )
    model = getattr(transformers, f"{kind}Model")(config)
    with torch.device("cpu"):  # no file has these numbers, so they must be there even where weights are meta tensors
        model.rotary_emb = type(model.rotary_emb)(config)
    return model
