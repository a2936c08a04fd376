"""The service on Ray Serve, for clusters that have it: `serve run deploy.ray_serve:app`.

Settings come from MOONSHELF_CONFIG or MOONSHELF_… variables. Each replica loads its own model and reads the
same catalogue; upserts of several replicas wait for one lock, so send them to one copy outside of Ray
where there are many. No extra of ours brings it: install "ray[serve]" beside moonshelf[serve].
"""

from __future__ import annotations

from fastapi import FastAPI
from ray import serve

from moonshelf.service.app import create_app
from moonshelf.service.settings import load_settings


def build() -> FastAPI:
    """Called in each replica: the application holds threads and a model, which cannot be sent there."""
    return create_app(load_settings())


Moonshelf = serve.deployment(num_replicas=2, max_ongoing_requests=256, ray_actor_options={"num_cpus": 2})(
    serve.ingress(build)()
)
app = Moonshelf.bind()
