"""Gymnasium environments of Mobile Edge Generation; importing this registers `megopt/Request-v0`."""

from gymnasium.envs.registration import register, registry

REQUEST_ID = "megopt/Request-v0"

if REQUEST_ID not in registry:
    register(
        id=REQUEST_ID,
        entry_point="megopt.envs.request:RequestEnv",
        vector_entry_point="megopt.envs.request:RequestVectorEnv",
    )
