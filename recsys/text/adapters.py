"""What each mode of adaptation puts into the encoder, which weights it trains, and how they are merged.

LoRA (Hu et al. 2022) changes the attention's query and value maps, IA3 (Liu et al. 2022, "Few-Shot
Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning") scales keys, values and
the feed-forward part's neurons; both are peft's. peft's prompt learning wants a model of the transformers
library, so that of ours stands in `prompts`.
"""

from __future__ import annotations

from peft import IA3Config, LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from recsys.text.prompts import PromptedTransformer, add_prefixes
from recsys.text.settings import FinetuneConfig
from recsys.text.transformer import TextTransformer


def equip(
    model: TextTransformer, config: FinetuneConfig, words: Tensor
) -> tuple[nn.Module, list[nn.Parameter]]:
    """Put in what the mode trains and freeze all else.

    Args:
        model: taken over and changed.
        config: the mode and its sizes.
        words: (P,) token ids that virtual tokens start as; the other modes do not read them.

    Returns:
        The model to train, which embeds as before at first (with virtual tokens: nearly so), and its
        trained weights, none where the mode is `frozen`.
    """
    model.requires_grad_(False)
    equipped: nn.Module = model
    if config.mode == "full":
        model.layers.requires_grad_(True)
    elif config.mode == "lora":
        rank = config.lora_rank
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["query", "value"]), model
        )
    elif config.mode == "ia3":
        parts = ["key", "value", "contract"]
        inject_adapter_in_model(IA3Config(target_modules=parts, feedforward_modules=["contract"]), model)
    elif config.mode == "prompt":
        equipped = PromptedTransformer(model, words)
    elif config.mode == "prefix":
        add_prefixes(model, words)
    return equipped, [weight for weight in equipped.parameters() if weight.requires_grad]


def learning_rate(config: FinetuneConfig) -> float:
    """The highest rate of what the mode trains."""
    if config.mode in ("prompt", "prefix"):
        return config.prompt_learning_rate
    return {"lora": config.lora_learning_rate, "ia3": config.ia3_learning_rate}.get(
        config.mode, config.learning_rate
    )


def weight_decay(config: FinetuneConfig) -> float:
    """Of AdamW: none for vectors, which do not start at zero."""
    return 0.01 if config.mode in ("full", "lora") else 0.0


def merged(model: nn.Module) -> TextTransformer:
    """A plain copy in evaluation mode, any adapters of LoRA or IA3 merged into the weights that they adapt.

    Raises:
        ValueError: the model has virtual tokens, which no weight can take up.
    """
    if not isinstance(model, TextTransformer) or len(model.weighted_layers) < len(model.layers):
        raise ValueError("virtual tokens cannot be merged into an encoder's weights")
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    state = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name and ".ia3_" not in name
    }
    plain = TextTransformer(model.architecture)
    plain.load_state_dict(state)
    return plain.eval()
