"""Gymnasium environments of Mobile Edge Generation; importing this registers `megopt/Request-v0`, `megopt/Cell-v0`."""

from gymnasium.envs.registration import register, registry

REQUEST_ID = "megopt/Request-v0"
CELL_ID = "megopt/Cell-v0"

for _id, _module, _name in ((REQUEST_ID, "request", "Request"), (CELL_ID, "cell", "Cell")):
    if _id not in registry:
        register(
            id=_id,
            entry_point=f"megopt.envs.{_module}:{_name}Env",
            vector_entry_point=f"megopt.envs.{_module}:{_name}VectorEnv",
        )
