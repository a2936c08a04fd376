"""Training the embedding model: recipes, data, losses, and one trainer for all stages.

Nothing heavy is imported here: `quiet_dependencies` has to run before that.
"""

from __future__ import annotations

import os
import sys

# Read by the packages when they are imported; what the user has set wins.
_QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, transformers, datasets
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets
    "GRADIO_ANALYTICS_ENABLED": "False",  # trackio's dashboard
    "WANDB_ERROR_REPORTING": "false",  # W&B sends its own crashes to Sentry
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def quiet_dependencies() -> None:
    """Turn off the telemetry of what training imports. Call it before the heavy imports.

    A variable that is already set is left alone. huggingface_hub reads its own once, when it is imported, so
    the constant is changed too where that has happened.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None and os.environ["HF_HUB_DISABLE_TELEMETRY"].lower() in ("1", "on", "yes", "true"):
        constants.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]
