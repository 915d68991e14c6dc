"""The card of an exported model, in the hub's format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import PeftModel
from transformers import AutoModelForImageTextToText
from transformers.utils.hub import cached_file

from onpolicy_sdft.models import embedded
from onpolicy_sdft.models.generation import describe_left_out, listed_ids
from onpolicy_sdft.models.language import class_for
from onpolicy_sdft.versions import package_versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CARD_MARK = "fine-tuned with onpolicy_sdft"
#: Fact of a card that names the data set on the hub.
HUB_DATA = "hub data set"
_PACKAGES = ("onpolicy_sdft", "torch", "transformers", "peft", "accelerate")


def where_base_is(model: PeftModel, base_name: str) -> str:
    """Return the base as PEFT can load it from any working directory: a folder, or a hub id."""
    if base_name.startswith(embedded.PREFIX):
        return str(Path(str(model.get_base_model().name_or_path)).absolute())
    return str(Path(base_name).absolute()) if Path(base_name).is_dir() else base_name


def model_card(
    model: PreTrainedModel | PeftModel, base_name: str, facts: Mapping[str, str], summary: Mapping[str, Any]
) -> str:
    """Return a model card in the hub's format: how to load it, method, data, scores with intervals, versions."""
    header = _metadata(base_name, facts, summary, is_adapter=isinstance(model, PeftModel)).to_yaml()
    lines = ["---", header, "---", "", f"# {base_name}, {CARD_MARK}", ""]
    if isinstance(model, PeftModel):
        lines += _how_to_load(model, base_name)
    if model.generation_config is not None:
        lines.append(f"* stop tokens: {listed_ids(model.generation_config.eos_token_id)}")
        if said := describe_left_out(model.generation_config):
            lines.append(f"* left out of the base's generation_config.json, as answers were scored without: {said}")
    lines.append(f"* attention: {model.config.get_text_config()._attn_implementation}")
    lines += [f"* {key}: {value}" for key, value in facts.items()]
    for stage, scores in summary.items():
        for item in scores.get("sets", []):
            if item["score"] is None:
                lines.append(f"* {stage}: {item['label']} not checked (n = {item['n']}): its task has no check")
                continue
            lines.append(
                f"* {stage}: {item['label']} {item['score']:.3f} "
                f"[{item['low']:.3f}, {item['high']:.3f}] (n = {item['n']}, 95 % Wilson)"
            )
        if scores.get("kl"):
            kl = scores["kl"]
            lines.append(
                f"* {stage}: KL(base || tuned) {kl['mean']:.4f} nats per token "
                f"[{kl['low']:.4f}, {kl['high']:.4f}] ({kl['num_completions']} completions)"
            )
    versions = package_versions(_PACKAGES).items()
    lines.append("* versions: " + ", ".join(f"{name} {version or 'unknown'}" for name, version in versions))
    return "\n".join([*lines, ""])


def _how_to_load(model: PeftModel, base_name: str) -> list[str]:
    """Say what PEFT does not do by itself: it takes the stop tokens of the base."""
    base = where_base_is(model, base_name)
    where = f" (`{base_name}`, made by `sdft models fetch`)" if base_name.startswith(embedded.PREFIX) else ""
    load = "model = peft.AutoPeftModelForCausalLM.from_pretrained(folder)"
    if class_for(model.config) is AutoModelForImageTextToText:
        load = "model = peft.PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), folder)"
    return [
        "```python",
        load,
        "model.generation_config = transformers.GenerationConfig.from_pretrained(folder)  # the stop tokens of the run",
        "```",
        "",
        f"* base: {base}{where}",
    ]


def _metadata(
    base_name: str, facts: Mapping[str, str], summary: Mapping[str, Any], *, is_adapter: bool
) -> ModelCardData:
    """Return what the hub reads of a card: base model, licence, data set, and the scores after training."""
    is_on_hub = not base_name.startswith(embedded.PREFIX) and not Path(base_name).exists()
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=item["label"],
            dataset_name=item["label"],
            metric_type="accuracy",
            metric_name=f"right answers of {item['n']}",
            metric_value=round(item["score"], 4),
        )
        for item in summary.get("after", {}).get("sets", [])
        if item["score"] is not None
    ]
    return ModelCardData(
        base_model=base_name if is_on_hub else None,
        license=_licence(base_name),
        datasets=[facts[HUB_DATA]] if HUB_DATA in facts else None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["onpolicy_sdft", "self-distillation"],
        model_name=facts.get("run", base_name) if results else None,
        eval_results=results or None,
    )


def _licence(base_name: str) -> str | None:
    """Return the licence of the base model, where its own card is here and says one."""
    if base_name.startswith(embedded.PREFIX):
        return embedded.EMBEDDED_MODELS[base_name.removeprefix(embedded.PREFIX)].licence
    try:
        found = cached_file(base_name, "README.md", local_files_only=True, _raise_exceptions_for_missing_entries=False)
        card = None if found is None else ModelCard(Path(found).read_text(encoding="utf-8"))
        said = None if card is None else getattr(card.data, "license", None)
    except (OSError, ValueError):  # no such model here, or a card that cannot be read
        return None
    return said if isinstance(said, str) else None
