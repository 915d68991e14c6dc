"""Kernels of a rollout on a CPU (numba, oneDNN): attention over slots, norms, gated units, rotary positions, stores.

Import their modules where they are called: numba takes a second to import, and a GPU never needs it.
"""

KEY_BLOCK = 64  # neighbouring keys that are stored number by number, so that a register holds one number of each
