"""Operations in JAX, forward and backward: ``refvt check jax_layernorm:Mine``.

``jax_operation`` gives each function its backward, by ``jax.vjp``.
"""

import jax
import jax.numpy as jnp

from refvt.conformance import adapters


def my_layernorm(x, weight, bias):
    centred = x - x.mean(axis=1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(axis=1, keepdims=True) + 1e-6) * weight + bias


def my_mlp(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual=None, gain=None):
    y = jax.nn.gelu(x @ fc1_weight.T + fc1_bias, approximate=False) @ fc2_weight.T + fc2_bias
    y = y if gain is None else gain[:, None] * y
    return y if residual is None else residual + y


def stopped_layernorm(x, weight, bias):
    """The bug: no gradient through the mean and the variance."""
    mean, variance = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
    mean, variance = jax.lax.stop_gradient((mean, variance))
    return (x - mean) / jnp.sqrt(variance + 1e-6) * weight + bias


class Mine:
    layernorm = adapters.jax_operation(my_layernorm)
    mlp = adapters.jax_operation(my_mlp)


class Broken:
    layernorm = adapters.jax_operation(stopped_layernorm)
    mlp = adapters.jax_operation(my_mlp)
