"""The InferenceService resource, `serving.quire.dev/v1alpha1`, as types.

They are the source of the CustomResourceDefinition (`crd.py` writes it) and what the operator
decodes objects into. Every field says its unit, its default and what follows from it. A field that
does nothing yet is not here. `spec.replicas` is the one number that says how many pods: the user
writes it, or the scaler through `/scale`.

Read `spec.py` (with `model.py`, `engine.py`, `scaling.py`), then `status.py`.
"""

from __future__ import annotations

from quire_operator.api.engine import Engine, Resources
from quire_operator.api.model import Adapter, Cache, Model
from quire_operator.api.parts import QuantityField, Rule
from quire_operator.api.scaling import Keda, ScaleRule, Scaling, Schedule, Targets
from quire_operator.api.spec import Rollout, Spec, decode_spec
from quire_operator.api.status import (
    Condition,
    ModelStatus,
    PlanStatus,
    ScalingDecision,
    ScalingStatus,
    StartupStatus,
    Status,
    decode_status,
)

__all__ = [
    "API_VERSION",
    "GROUP",
    "KIND",
    "MAX_NAME_LEN",
    "PLURAL",
    "VERSION",
    "Adapter",
    "Cache",
    "Condition",
    "Engine",
    "Keda",
    "Model",
    "ModelStatus",
    "PlanStatus",
    "QuantityField",
    "Resources",
    "Rollout",
    "Rule",
    "ScaleRule",
    "Scaling",
    "ScalingDecision",
    "ScalingStatus",
    "Schedule",
    "Spec",
    "StartupStatus",
    "Status",
    "Targets",
    "decode_spec",
    "decode_status",
]

GROUP = "serving.quire.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "InferenceService"
PLURAL = "inferenceservices"
MAX_NAME_LEN = 40
"""Characters. Children carry a suffix (`-<hash8>`, ReplicaSet, pod) that has to fit in 63."""
