"""What a launch may not ask for, found before anything is divided; what backends do is in tests/distributed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.errors import ConfigError, TrainingError
from onpolicy_sdft.models.policy import Policy
from onpolicy_sdft.train.backend import Backend
from onpolicy_sdft.train.deepspeed import DeepSpeedBackend
from onpolicy_sdft.train.fsdp import FsdpBackend
from onpolicy_sdft.train.launch import make_backend


def launched(kind, distributed_type, **plugins):
    """Return a backend as accelerate would have set it up."""
    backend = kind.__new__(kind)
    backend.precision = "fp32"
    backend.accelerator = SimpleNamespace(
        distributed_type=distributed_type, num_processes=1, process_index=0, device="cpu",
        state=SimpleNamespace(**plugins),
    )  # fmt: skip
    backend._check_launch()
    return backend


def deepspeed(zero=None, *, init=False, **config):
    whole = {"zero_optimization": {"stage": 3, **(zero or {})}, **config}
    plugin = SimpleNamespace(deepspeed_config=whole, zero3_init_flag=init, dschf=object())
    return launched(DeepSpeedBackend, DistributedType.DEEPSPEED, deepspeed_plugin=plugin)


def fsdp(**options):
    free = {"fsdp_version": 2, "activation_checkpointing": False, "cpu_ram_efficient_loading": False}
    plugin = SimpleNamespace(**{**free, **options})
    return launched(FsdpBackend, DistributedType.FSDP, fsdp_plugin=plugin)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: deepspeed({"stage": 0}), "divides nothing"),
        (lambda: deepspeed(bf16={"enabled": True}), "train.precision"),
        (lambda: deepspeed(gradient_accumulation_steps=4), "1, or auto"),
        (lambda: deepspeed({"offload_param": {"device": "nvme"}}), "cpu or none"),
        (lambda: deepspeed(init=True), "zero3_init_flag: false"),
        (lambda: fsdp(fsdp_version=1), "fsdp_version: 2"),
        (lambda: fsdp(cpu_ram_efficient_loading=True), "fsdp_cpu_ram_efficient_loading: false"),
        (lambda: fsdp(activation_checkpointing=True), "model.gradient_checkpointing"),
        (lambda: launched(FsdpBackend, DistributedType.MULTI_CPU), "weights would not be divided"),
    ],
)
def test_a_launch_that_would_do_something_else_is_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


@pytest.mark.parametrize(
    ("backend", "options", "said"),
    [
        (lambda: deepspeed(gradient_clipping=0.3), {}, "optim.max_grad_norm=1"),
        (deepspeed, {"rollout.weights": "in_place"}, "--rollout.weights auto"),
        (deepspeed, {"model.load_in_4bit": True}, "cannot be divided"),
        (lambda: Backend("fp32"), {"rollout.weights": "gather"}, "whole on every rank"),
    ],
)
def test_options_that_a_launch_cannot_do_are_refused(backend, options, said):
    with pytest.raises(ConfigError, match=said):
        backend().check(load_config(**options))


def test_what_a_launch_leaves_open_is_ours():
    found = deepspeed(gradient_clipping="auto", gradient_accumulation_steps="auto", bf16={"enabled": "auto"})
    found.check(load_config())
    plugin = found.accelerator.state.deepspeed_plugin
    assert plugin.dschf is None
    assert plugin.deepspeed_config["gradient_clipping"] == 0.0
    assert plugin.deepspeed_config["zero_optimization"]["reduce_bucket_size"] == 50_000_000


def test_fsdp_refuses_weights_of_two_dtypes(tiny_model):
    policy = Policy(tiny_model())
    next(iter(policy.parameters())).data = next(iter(policy.parameters())).data.to(torch.bfloat16)
    with pytest.raises(ConfigError, match="--model.dtype float32"):
        fsdp().prepare(policy, torch.optim.SGD(policy.parameters()))


def test_the_environment_of_accelerate_chooses_the_backend(monkeypatch):
    assert type(make_backend("fp32")) is Backend
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="weights would not be divided"):
        make_backend("fp32")


def test_an_error_of_the_first_rank_reaches_the_others_whatever_it_is(monkeypatch):
    sent = []
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda outcome: sent.append(outcome[1]))
    first = launched(Backend, DistributedType.NO)
    monkeypatch.setattr(Backend, "num_ranks", 2)
    with pytest.raises(OSError, match="no space"):
        first.on_first(lambda: (_ for _ in ()).throw(OSError("no space")))
    (error,) = sent
    assert isinstance(error, TrainingError)
    assert "Rank 0 failed (OSError): no space" in str(error)
