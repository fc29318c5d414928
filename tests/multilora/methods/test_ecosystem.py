"""The methods inside TRL, lm-evaluation-harness, pipelines and torch.compile.

A library that is not installed is skipped: `pip install trl 'multilora[harness]'`.
"""

import warnings

import pytest
import torch
import transformers
from peft import get_peft_model
from tiny_models import llama

from analysis import spectrum
from multilora import MtlLoraConfig, MultiLoraConfig, RLoraConfig
from multilora.delta import save_as_lora
from multilora.methods.layers import AdapterLinear

warnings.filterwarnings("ignore", module="peft")

IDS = torch.arange(12).reshape(2, 6)
CONFIGS = {
    "multilora": lambda **k: MultiLoraConfig(r=2, n=3, **k),
    "rlora": lambda **k: RLoraConfig(r=2, n=2, **k),
    "mtllora": lambda **k: MtlLoraConfig(r=2, n=2, tasks=["a", "b"], **k),
}


@pytest.fixture
def base(ending_early):
    """(model, tokenizer, directory), the model loaded anew."""
    _, tokenizer, path = ending_early
    return transformers.AutoModelForCausalLM.from_pretrained(path), tokenizer, path


def moved(model):
    """As if training had moved all that it can move."""
    generator = torch.Generator().manual_seed(1)
    for layer in (m for m in model.modules() if isinstance(m, AdapterLinear)):
        for name in layer.adapter_layer_names:
            for p in getattr(layer, name).values():
                p.data += 0.3 * torch.randn(p.shape, generator=generator)
    return model


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("method", list(CONFIGS))
def test_a_compiled_model_has_the_same_outputs_and_gradients(method, backend):
    model = moved(get_peft_model(llama(), CONFIGS[method](target_modules=["q_proj", "down_proj"])))
    if method == "mtllora":
        model.base_model.set_task("b")
    want = model(input_ids=IDS, labels=IDS)
    want.loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch._dynamo.reset()
    got = torch.compile(model, backend=backend)(input_ids=IDS, labels=IDS)
    got.loss.backward()
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-5, atol=1e-5)
    assert len(gradients) >= 4
    for name, p in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(p.grad, gradients[name], rtol=1e-3, atol=1e-5)


def test_a_compiled_model_follows_a_change_of_adapters():
    config = CONFIGS["multilora"]
    model = moved(get_peft_model(llama(), config(target_modules=["q_proj"])))
    model.add_adapter("second", config(target_modules=["q_proj"], init_lora_weights=False))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        for name in ("default", "second"):
            model.set_adapter(name)
            torch.testing.assert_close(compiled(IDS).logits, model(IDS).logits)
        with model.disable_adapter():
            torch.testing.assert_close(compiled(IDS).logits, llama()(IDS).logits)


@pytest.mark.parametrize("exported", [False, True])
def test_a_pipeline_loads_base_and_adapter_from_the_adapters_directory(base, tmp_path, exported):
    model, tokenizer, _ = base
    config = CONFIGS["multilora"](target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = moved(get_peft_model(model, config)).eval()
    if exported:
        save_as_lora(model, tmp_path)
    else:
        model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    generate = transformers.pipeline("text-generation", model=str(tmp_path), device="cpu")
    options = {"max_new_tokens": 5, "do_sample": False}
    (got,) = generate("list", **options, return_full_text=False)
    ids = tokenizer("list", return_tensors="pt").input_ids
    want = model.generate(input_ids=ids, **options, pad_token_id=tokenizer.pad_token_id)
    text = tokenizer.decode(want[0, ids.shape[1] :], skip_special_tokens=True)
    assert got["generated_text"].split() == text.split()


@pytest.mark.parametrize("method", ["multilora", "rlora"])
def test_trl_trains_it_as_it_trains_lora(base, tmp_path, method):
    trl = pytest.importorskip("trl", reason="trl is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    model, tokenizer, _ = base
    data = datasets.Dataset.from_list([{"text": "list again list again"}] * 8)
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, learning_rate=0.01,
        report_to="none", use_cpu=True, bf16=False, save_strategy="no", max_length=16,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model,
        args=arguments,
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=CONFIGS[method](target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    trainer.train()
    moved_by = [p for n, p in trainer.model.named_parameters() if f"{method}_B" in n]
    assert moved_by
    assert all(p.requires_grad for p in moved_by)
    trainer.save_model(str(tmp_path / "saved"))
    found = spectrum.analyse(str(tmp_path / "saved"))
    assert found.rows
    assert {row["method"] for row in found.rows} == {method}
    assert all(row["frobenius_norm"] > 0 for row in found.rows)


@pytest.mark.parametrize("exported", [False, True])
def test_the_evaluation_harness_takes_the_adapter_as_peft(base, tmp_path, exported):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer, path = base
    config = CONFIGS["multilora"](target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = moved(get_peft_model(model, config)).eval()
    if exported:
        save_as_lora(model, tmp_path)
    else:
        model.save_pretrained(tmp_path)
    # What `--model hf --model_args pretrained=…,peft=…` builds.
    harness = HFLM(pretrained=path, peft=str(tmp_path), device="cpu", batch_size=1)
    request = Instance("loglikelihood", {}, ("list", " again"), 0)
    ((got, _),) = harness.loglikelihood([request], disable_tqdm=True)
    ids = tokenizer("list again", return_tensors="pt").input_ids
    with torch.no_grad():
        want = model(input_ids=ids).logits[0, -2].log_softmax(-1)[ids[0, -1]]
    assert abs(got - float(want)) < 1e-3
