"""What is not trusted: templates, weights in pickles, texts; and what never goes into a run directory."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from tiny import say, write_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from onpolicy_sdft import fit, load_config
from onpolicy_sdft.config.schema import LoraConfig, ModelConfig
from onpolicy_sdft.data.templates import TeacherContext
from onpolicy_sdft.errors import ConfigError, ModelError
from onpolicy_sdft.models.load import load
from onpolicy_sdft.models.lora import prepare_trainable
from onpolicy_sdft.types import Demonstration, Turn

ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ question.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(question) }}",
    "{{ question|attr('__class__') }}",
    "{{ lipsum.__globals__['os'].system('id') }}",
    "{% set x = question.__class__ %}{{ x }}",
    "{{ range(10**9)|list }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
)


@pytest.mark.parametrize("escape", ESCAPES)
def test_a_context_template_cannot_reach_out_of_its_sandbox(escape, tmp_path):
    path = tmp_path / "teacher.j2"
    path.write_text("{{ question }} {{ demonstration }} " + escape)
    row = Demonstration("1", (Turn("user", "What?"),), "That.")
    with pytest.raises(ConfigError, match=r"cannot be rendered|does not compile"):
        TeacherContext(str(path)).turns(row, "That.", ())


def test_weights_in_a_pickle_are_refused(model_dir, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, not in safetensors: a pickle.* Fix: "):
        load(ModelConfig(name=str(tmp_path)))


def test_an_adapter_in_a_pickle_is_refused(model_dir, tmp_path):
    config = ModelConfig(name=str(model_dir))
    model = prepare_trainable(load(config).model, LoraConfig(r=4), config, seed=0)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model\.bin, not in safetensors: a pickle.* Fix: "):
        load(dataclasses.replace(config, name=str(tmp_path)))


def test_code_that_comes_with_a_model_is_not_run(model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path, dirs_exist_ok=True)
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    described = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "own", "auto_map": classes}
    (tmp_path / "config.json").write_text(json.dumps(described))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match="trust_remote_code"):
        load(ModelConfig(name=str(tmp_path)))
    assert not (tmp_path / "ran").exists()


def test_no_secret_of_the_environment_is_written_into_a_run_directory(model_dir, tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD"):
        monkeypatch.setenv(name, "s3cret-value")
    output = tmp_path / "run"
    options = {"train.max_steps": 1, "train.batch_size": 2, "eval.before_and_after": False, "rollout.max_new_tokens": 4}
    fit(load_config(write_run(tmp_path, model_dir, say("one", "two"), **options, **{"train.output_dir": output})))
    files = [path for path in output.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if b"s3cret-value" in path.read_bytes()] == []
