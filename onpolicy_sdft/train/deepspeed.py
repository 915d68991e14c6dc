"""DeepSpeed ZeRO-1, 2 and 3.

The engine is called directly: ``Accelerator.backward`` would step it as well, before anyone has looked whether the
loss is finite. Accumulation is by the boundary flag, so the engine divides by ranks only.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType

from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.models.policy import head_of
from onpolicy_sdft.models.shards import Slices, Zero3
from onpolicy_sdft.train.backend import DividedBackend, is_scalar, number_in

if TYPE_CHECKING:
    from torch import nn

    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.models.policy import Policy

BUCKET_ELEMENTS = 50_000_000
_FREE = (None, "auto")  # values of an option that leave it to us


class DeepSpeedBackend(DividedBackend):
    """As :class:`Backend`, under DeepSpeed."""

    kinds = (DistributedType.DEEPSPEED,)

    def _check_launch(self) -> None:
        super()._check_launch()
        plugin = self.accelerator.state.deepspeed_plugin
        config = plugin.deepspeed_config
        self.stage = int(config["zero_optimization"]["stage"])
        if self.stage not in (1, 2, 3):
            raise ConfigError(
                f"DeepSpeed ZeRO stage {self.stage} divides nothing. Fix: launch/accelerate/ddp.yaml, or "
                "zero_stage 1, 2 or 3."
            )
        self.name = f"zero{self.stage}"
        for name in ("bf16", "fp16"):
            if config.get(name, {}).get("enabled") not in (None, False, "auto"):
                raise ConfigError(
                    f"The DeepSpeed config enables {name}; the precision is that of train.precision, with float32 "
                    f"weights. Fix: take {name} out of it."
                )
        if config.get("gradient_accumulation_steps") not in (*_FREE, 1):
            raise ConfigError(
                f"The DeepSpeed config has gradient_accumulation_steps={config['gradient_accumulation_steps']}; "
                "micro-batches follow from train.batch_size and train.micro_batch_tokens. Fix: 1, or auto."
            )
        for name in ("offload_param", "offload_optimizer"):
            if (config["zero_optimization"].get(name) or {}).get("device") == "nvme":
                raise ConfigError(f"{name} to nvme: checkpoints of it are not known here. Fix: device cpu or none.")
        if plugin.zero3_init_flag:
            raise ConfigError(
                "zero3_init_flag divides the model before its adapters are there. Fix: zero3_init_flag: false."
            )
        # transformers would divide the model while it loads it, whatever zero3_init_flag says.
        plugin.dschf = None
        self.clipping = config.get("gradient_clipping")
        config["train_micro_batch_size_per_gpu"] = 1  # DeepSpeed asks for it; nothing of ours reads it
        config["gradient_accumulation_steps"] = 1
        config["gradient_clipping"] = 0.0  # set in the step
        # DeepSpeed's own 500 M elements would be 2 GB a buffer, however small the model.
        config["zero_optimization"].setdefault("reduce_bucket_size", BUCKET_ELEMENTS)
        self.shards = (
            Zero3(self.rank, self.num_ranks, self.device) if self.stage == 3 else Slices(self.rank, self.num_ranks)
        )

    def prepare(self, policy: Policy, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Hand the policy to a DeepSpeed engine; see :meth:`Backend.prepare`."""
        super().prepare(policy, optimizer)
        if self.stage == 3:
            from deepspeed.runtime.zero import register_external_parameter

            # The objective reads the head, whose own forward, which would gather it, is never called.
            head = head_of(inner_model(policy.model))
            for parameter in (head.weight_VD, head.bias_V):
                if parameter is not None:
                    register_external_parameter(policy, parameter)
        return self._policy, self._basic()

    def check(self, config: RunConfig) -> None:
        """Refuse options that this launch cannot do, and a DeepSpeed config that clips otherwise than they say."""
        super().check(config)
        max_norm = config.optim.max_grad_norm
        if self.clipping not in (*_FREE, 0, 0.0, max_norm):
            raise ConfigError(
                f"The DeepSpeed config has gradient_clipping={self.clipping}, the run optim.max_grad_norm="
                f"{max_norm:g}. Fix: take gradient_clipping out of the DeepSpeed config."
            )

    @contextlib.contextmanager
    def micro_batch(self, *, last: bool) -> Any:
        """Tell the engine whether this is the last micro-batch of the step."""
        self._policy.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate gradients of an already normalised loss."""
        self._policy.backward(loss * self.num_ranks, scale_wrt_gas=False)

    def optimizer_step(self, max_norm: float) -> float:
        """Clip and step; DeepSpeed looks at the norm on all ranks first and drops gradients that are not finite."""
        self._zero().clip_grad = max_norm
        self._policy.step()
        if self._zero().overflow:
            return math.nan
        return float(self._policy.get_global_grad_norm())

    def discard_gradients(self) -> None:
        """Forget what was accumulated, as DeepSpeed does where a norm is not finite."""
        zero = self._zero()
        zero.zero_grad(set_to_none=True)
        if self.stage == 3:
            zero.averaged_gradients = {}
        else:
            for group in zero.averaged_gradients:
                zero.averaged_gradients[group] = zero.all_grad_tensors[group] = None

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Restore :meth:`weights`; the optimizer's own copies too."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        super().load_weights(weights)
        for name, parameter in self.trainable().items():
            whole = weights[name].to(self.device)
            if self.stage == 3:
                safe_set_local_fp32_param(parameter, self.shards.part_of(parameter, whole))
            else:
                safe_set_full_fp32_param(parameter, whole)

    def _states(self, parameter: nn.Parameter) -> Mapping[str, Any]:
        from deepspeed.utils import safe_get_full_optimizer_state, safe_get_local_optimizer_state

        state = self._basic().state.get(self._flats()[0], {})
        self._link()
        get = safe_get_local_optimizer_state if self.stage == 3 else safe_get_full_optimizer_state
        return {key: value if is_scalar(value) else get(parameter, key) for key, value in state.items()}

    def _gathered(self, parameter: nn.Parameter, part: torch.Tensor) -> torch.Tensor:
        return self.shards.gather(parameter, part) if self.stage == 3 else part  # DeepSpeed gave the whole

    def load_optimizer_state(self, saved: Mapping[str, Any]) -> None:
        """Restore :meth:`optimizer_state`: one state a flat buffer, filled parameter by parameter."""
        state = next(iter(saved["state"].values()))
        if state:
            for flat in self._flats():
                self._basic().state[flat] = {
                    key: number_in(self._basic(), value) if is_scalar(value) else torch.zeros_like(flat)
                    for key, value in state.items()
                }
        super().load_optimizer_state(saved)

    def _place(self, parameter: nn.Parameter, state: Mapping[str, Any]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        self._link()
        for key, value in state.items():
            if is_scalar(value):
                continue
            if self.stage == 3:
                safe_set_local_optimizer_state(parameter, self.shards.part_of(parameter, value.to(self.device)), key)
            else:
                safe_set_full_optimizer_state(parameter, value.to(self.device), key)

    def _link(self) -> None:
        """Let ZeRO-1 and 2 find the optimizer's state by parameter.

        DeepSpeed does so after the step of the first parameter group, when the others have no state yet.
        """
        if self.stage != 3 and self._basic().state:
            self._zero()._hp_optimizer_states_linked = False
            self._zero()._lazy_init_hp_params_optimizer_state()

    def _zero(self) -> Any:
        return self._policy.optimizer

    def _basic(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self._zero().optimizer
        return optimizer

    def _flats(self) -> list[torch.Tensor]:
        """Return the flat buffers that the optimizer steps."""
        zero = self._zero()
        return list(zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups)
