"""Weights: loading (hub, local, embedded), adapters, and the policy that learns."""
