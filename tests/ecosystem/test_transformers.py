"""Transformers of Hugging Face, from small configurations. `make test-ecosystem` installs them and runs this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxhash
from tests.helpers import assert_carried_through, assert_same_outputs, may_be_opaque

transformers = pytest.importorskip("transformers")
pytestmark = [may_be_opaque, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {**WIDTHS, "vocab_size": 100}
DECODER = {**TEXT, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IMAGE = {**WIDTHS, "image_size": 32, "patch_size": 8}
SEQ2SEQ = {
    **{"vocab_size": 100, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4},
    **{"decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "pad_token_id": 0},
    **{"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
}
SPEECH = {
    **{**TEXT, "conv_dim": [16, 16], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "layerdrop": 0.0, "mask_time_prob": 0.0},
}


def tokens(length: int = 9) -> Tensor:
    return torch.randint(3, 100, (2, length))


def text() -> dict[str, Tensor]:
    return {"input_ids": tokens()}


def translation() -> dict[str, Tensor]:
    return {"input_ids": tokens(), "decoder_input_ids": tokens(5)}


def images(side: int = 32) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, side, side)}


def waves() -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, 1600)}


# Class of the model -> class of its configuration, what it is configured with, and its inputs.
MODELS: dict[str, tuple[str, dict[str, Any], Callable[[], dict[str, Tensor]]]] = {
    # Encoders
    "BertForMaskedLM": ("BertConfig", TEXT, text),
    "RobertaModel": ("RobertaConfig", TEXT, text),
    "DistilBertModel": (
        "DistilBertConfig",
        {"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
        text,
    ),
    "AlbertModel": ("AlbertConfig", {**TEXT, "embedding_size": 16}, text),
    "ElectraModel": ("ElectraConfig", {**TEXT, "embedding_size": 16}, text),
    "DebertaV2Model": ("DebertaV2Config", {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, text),
    "ModernBertModel": ("ModernBertConfig", {**DECODER, "cls_token_id": 1, "sep_token_id": 2}, text),
    # Decoders
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4}, text),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", TEXT, text),
    "OPTForCausalLM": (
        "OPTConfig",
        {
            "vocab_size": 100,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 64,
            "word_embed_proj_dim": 32,
        },
        text,
    ),
    "LlamaForCausalLM": ("LlamaConfig", DECODER, text),
    "MistralForCausalLM": ("MistralConfig", DECODER, text),
    "Qwen2ForCausalLM": ("Qwen2Config", DECODER, text),
    "Qwen3ForCausalLM": ("Qwen3Config", {**DECODER, "head_dim": 8}, text),
    "Gemma2ForCausalLM": ("Gemma2Config", {**DECODER, "head_dim": 8}, text),
    "Phi3ForCausalLM": ("Phi3Config", DECODER, text),
    "MixtralForCausalLM": ("MixtralConfig", {**DECODER, "num_local_experts": 4}, text),
    "BloomForCausalLM": ("BloomConfig", {"vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4}, text),
    "FalconForCausalLM": (
        "FalconConfig",
        {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        text,
    ),
    # Encoders with decoders
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        translation,
    ),
    "BartForConditionalGeneration": ("BartConfig", {**SEQ2SEQ, "max_position_embeddings": 64}, translation),
    "MarianMTModel": ("MarianConfig", {**SEQ2SEQ, "max_position_embeddings": 64}, translation),
    # Vision
    "ViTForImageClassification": ("ViTConfig", IMAGE, images),
    "DeiTModel": ("DeiTConfig", IMAGE, images),
    "SwinModel": (
        "SwinConfig",
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4},
        images,
    ),
    "ConvNextModel": ("ConvNextConfig", {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 2, 1]}, images),
    "Dinov2Model": ("Dinov2Config", IMAGE, images),
    "SegformerForSemanticSegmentation": (
        "SegformerConfig",
        {
            "hidden_sizes": [8, 16, 16, 16],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 2],
            "decoder_hidden_size": 16,
        },
        lambda: images(64),
    ),
    "CLIPModel": (
        "CLIPConfig",
        {"text_config": {**TEXT, "max_position_embeddings": 16}, "vision_config": IMAGE, "projection_dim": 16},
        lambda: {**text(), **images()},
    ),
    # Speech
    "Wav2Vec2ForCTC": ("Wav2Vec2Config", SPEECH, waves),
    "HubertModel": ("HubertConfig", SPEECH, waves),
    "WhisperForConditionalGeneration": (
        "WhisperConfig",
        {
            **{**SEQ2SEQ, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 20},
            **{"suppress_tokens": None, "begin_suppress_tokens": None},
        },
        lambda: {"input_features": torch.randn(2, 16, 40), "decoder_input_ids": tokens(5)},
    ),
    "ASTModel": (
        "ASTConfig",
        {**WIDTHS, "num_mel_bins": 32, "max_length": 64, "patch_size": 8},
        lambda: {"input_values": torch.randn(2, 64, 32)},
    ),
    # State space
    "MambaForCausalLM": (
        "MambaConfig",
        {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
        text,
    ),
    "Mamba2ForCausalLM": (
        "Mamba2Config",
        {
            **{"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8},
            **{"head_dim": 8, "n_groups": 1, "chunk_size": 8},
        },
        text,
    ),
    "RwkvForCausalLM": (
        "RwkvConfig",
        {
            **{"vocab_size": 100, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2},
            "intermediate_size": 64,
            # Otherwise its forward divides weights in place, which none that is generated allows.
            "rescale_every": 0,
        },
        text,
    ),
}


def build(name: str) -> nn.Module:
    configuration, options, _ = MODELS[name]
    torch.manual_seed(0)
    return getattr(transformers, name)(getattr(transformers, configuration)(**options))


@pytest.mark.parametrize("name", MODELS)
def test_model(name):
    model = build(name)
    _, _, inputs = MODELS[name]
    assert_carried_through(model, compress=0.5, **inputs())


@pytest.mark.parametrize("name", ["BertForMaskedLM", "GPT2LMHeadModel", "T5ForConditionalGeneration"])
def test_store_and_load(name, tmp_path):
    model = build(name).eval()
    inputs = MODELS[name][2]()
    gm = fxhash.transform(model, 0.5, seed=0)
    fxhash.save(gm, tmp_path / "model.safetensors")
    assert_same_outputs(gm, fxhash.load(tmp_path / "model.safetensors", build(name).eval()), **inputs)
    dense = fxhash.materialize(gm)
    assert type(dense) is type(model)
    model.load_state_dict(dense.state_dict())
    assert_same_outputs(gm, model, **inputs)


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "BertForMaskedLM", "T5ForConditionalGeneration"])
def test_each_layer_comes_by_its_weight_when_it_is_called(name):
    inputs = MODELS[name][2]()
    gm = fxhash.transform(build(name), 0.3, seed=0, example_inputs=inputs).eval()
    lowered = fxhash.lower_for_deploy(gm, example_inputs=inputs)
    uses = lowered.smh_factors.plan.uses
    # Small ones are computed beforehand.
    assert all(use.module is not None or use.method == "cache" for use in uses if use.node == "opaque_part")
    assert len({use.module for use in uses}) > 10
    with torch.no_grad():
        torch.testing.assert_close(lowered(**inputs).logits, gm(**inputs).logits, rtol=1e-4, atol=1e-5)


def test_a_forward_that_rescales_its_weights_is_refused():
    model = build("RwkvForCausalLM")
    model.config.rescale_every = 6
    with torch.no_grad(), pytest.raises(fxhash.TransformError, match="changes its parameter"):
        fxhash.transform(model, 0.3, seed=0).eval()(**text())


@pytest.mark.parametrize("form", ["transformed", "lowered"])
@pytest.mark.parametrize(
    "name", ["BertForMaskedLM", "LlamaForCausalLM", "ViTForImageClassification", "GPT2LMHeadModel"]
)
def test_export_and_compile(name, form, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, inputs = build(name), MODELS[name][2]()
    model.config.use_cache = False
    gm = fxhash.transform(model, 0.3, seed=0).eval()
    model = gm if form == "transformed" else fxhash.lower_for_deploy(gm)
    with torch.no_grad():
        expected = model(**inputs).logits
        program = torch.export.export(model, (), inputs, strict=False)
        torch.testing.assert_close(program.module()(**inputs).logits, expected)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(**inputs).logits, expected, rtol=1e-4, atol=1e-5)
        torch.onnx.export(program, dynamo=True, optimize=False, verbose=False).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", disabled_optimizers=["ConstantFolding"])
    names = [node.name for node in session.get_inputs()]
    logits = session.run(None, {name: inputs[name].numpy() for name in names})[0]
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-3, atol=1e-4)


def test_loss_and_labels():
    gm = fxhash.transform(build("LlamaForCausalLM"), 0.5, seed=0)
    inputs = text()
    output = gm(**inputs, labels=inputs["input_ids"])
    output.loss.backward()
    assert all(left.grad.isfinite().all() for left in gm.smh_generator.left)


def test_a_model_with_low_rank_adapters():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_alpha=8)
    model = peft.get_peft_model(build("LlamaForCausalLM"), config)
    # Only the adapters are trained: they are hashed, and what is frozen stays as it is.
    with pytest.raises(fxhash.TransformError, match="give example_inputs"):
        fxhash.transform(model, 0.9, seed=0)
    gm = fxhash.transform(model, 0.9, seed=0, example_inputs=text())
    plan = gm.smh_generator.plan
    assert plan.hashed
    assert all("lora_" in parameter.fqn for parameter in plan.hashed)
    assert plan.frozen == sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert_carried_through(model, compress=0.9, is_checked=True, **text())


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize(
    ("name", "config", "options"),
    [
        ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100}),
        ("LlamaForCausalLM", "LlamaConfig", DECODER),
    ],
)
def test_generates_what_the_materialized_model_does(name, config, options, use_cache):
    torch.manual_seed(0)
    identifiers = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = getattr(transformers, name)(getattr(transformers, config)(**{**options, **identifiers})).eval()
    gm = fxhash.transform(model, 0.5, seed=0, capture="modules")
    assert gm.config.vocab_size == 100
    prompt = tokens(5)
    arguments = {"max_new_tokens": 8, "do_sample": False, "use_cache": use_cache}
    arguments["attention_mask"] = torch.ones_like(prompt)
    expected = fxhash.materialize(gm).generate(prompt, **arguments)
    for each in (gm, fxhash.lower_for_deploy(gm)):
        assert torch.equal(each.generate(prompt, **arguments), expected)
