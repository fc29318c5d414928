import ast
import re
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import llama, trained

from multilora import MtlLoraConfig, MultiLoraConfig, RLoraConfig, delta
from multilora.methods import card

warnings.filterwarnings("ignore", module="peft")

CONFIGS = {
    "MULTILORA": MultiLoraConfig(r=2, target_modules=["q_proj"]),
    "RLORA": RLoraConfig(r=2, target_modules=["q_proj"]),
    "MTLLORA": MtlLoraConfig(r=2, target_modules=["q_proj"], tasks=["sort"]),
}


def code(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_the_card_says_how_to_load_and_to_export_and_that_works(kind, tmp_path, monkeypatch):
    model = trained(llama(), CONFIGS[kind])
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"KeyError: '{kind}'" in text
    assert text.count(card.HEADING) == 1
    # In the place that the template has for it, and nothing else of the template is lost.
    own = text.partition(card.HEADING)[2].partition("\n## ")[0]
    load, export = code(own)
    assert card.EMPTY not in own
    assert text.count(card.EMPTY) > 10
    monkeypatch.chdir(tmp_path)
    names = {"base": llama()}
    exec(load.replace("DIRECTORY", str(tmp_path)), names)
    ids = torch.arange(6)[None]
    if kind != "MTLLORA":
        assert torch.equal(names["model"].eval()(ids).logits, model.eval()(ids).logits)
    with warnings.catch_warnings(record=True):  # R-LoRA's export is an approximation
        exec(export.replace("NAME OF THE TASK", "sort"), names)
    plain = PeftModel.from_pretrained(llama(), tmp_path / "as-lora")
    assert plain.peft_config["default"].peft_type == "LORA"


def test_saving_again_says_it_once_and_keeps_what_was_written(tmp_path):
    model = get_peft_model(llama(), CONFIGS["MULTILORA"])
    model.save_pretrained(tmp_path)
    file = tmp_path / "README.md"
    once = file.read_text(encoding="utf-8")
    file.write_text(once + "\nMy own words.\n", encoding="utf-8")
    model.save_pretrained(tmp_path)
    again = file.read_text(encoding="utf-8")
    assert again.count("import multilora") == 1
    assert again.endswith("My own words.\n") or again.endswith("My own words.")


def test_a_card_without_the_heading_gets_the_words_at_its_end(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("---\nlibrary_name: peft\n---\n# Mine\n", encoding="utf-8")
    card.complete(tmp_path, "MULTILORA")
    assert file.read_text(encoding="utf-8").startswith("---\nlibrary_name: peft\n---\n# Mine\n\nTh")


def test_the_card_above_a_further_adapter_has_it_too(tmp_path):
    model = get_peft_model(llama(), CONFIGS["MULTILORA"], adapter_name="mine")
    model.save_pretrained(tmp_path)
    assert "import multilora" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert not (tmp_path / "mine" / "README.md").exists()


@pytest.mark.parametrize("text", [None, "# A project of its own\n"])
def test_a_config_that_is_saved_alone_touches_no_readme(tmp_path, text):
    file = tmp_path / "README.md"
    if text:
        file.write_text(text)
    CONFIGS["MULTILORA"].save_pretrained(str(tmp_path / "sub"))
    CONFIGS["MULTILORA"].save_pretrained(str(tmp_path))
    assert (file.read_text() if file.exists() else None) == text


def test_a_lora_has_the_card_that_peft_writes(tmp_path):
    get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert "multilora" not in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_the_names_in_the_examples_exist(kind):
    for block in code(card.text(kind)):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "multilora.delta":
                assert all(hasattr(delta, name.name) for name in node.names)
