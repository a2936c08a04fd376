"""The service on Ray Serve, for clusters that have it: `serve run deploy.ray_serve:app`.

Settings are MOONSHELF_CONFIG or MOONSHELF_… variables where `serve run` is called; they go with the replicas,
whose machines have to reach the catalogue and the model. Each replica loads a model of its own and answers
503 until it has. Upserts of several replicas wait for one lock, so send them to one copy outside of Ray where
there are many. No extra of ours brings it: install "ray[serve]" beside moonshelf[serve].
"""

from __future__ import annotations

import os

from fastapi import FastAPI
from ray import serve

from moonshelf.service.app import create_app
from moonshelf.service.settings import load_settings

# Keys for other servers stay out: Ray shows a replica's environment to whoever may look at the cluster.
SETTINGS = {
    name: value
    for name, value in os.environ.items()
    if name.startswith("MOONSHELF_") and not name.endswith("_KEY")
}


def build() -> FastAPI:
    """Called in each replica: the application holds threads and a model, which cannot be sent there."""
    return create_app(load_settings())


Moonshelf = serve.deployment(
    name="moonshelf",
    num_replicas=2,
    max_ongoing_requests=256,
    # A starter does with one CPU; torch uses as many threads as there are CPUs here.
    ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": SETTINGS}},
)(serve.ingress(build)())
app = Moonshelf.bind()
