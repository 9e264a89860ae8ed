"""The objects that the cluster itself starts with. Pure."""

from collections.abc import Mapping, Sequence

from quire_cluster.configs import (
    DEFAULT_STORAGE_CLASS,
    NUM_GPUS,
    SMALL_STORAGE_CLASS,
    STORAGE_NAMESPACE,
    STORAGE_PROVISIONER,
)
from quire_cluster.network import NODE_NAME

Manifest = Mapping[str, object]


def initial_objects() -> Manifest:
    """Storage classes, the provisioner's namespace, and what CoreDNS and it may do."""
    return _list(
        [
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": STORAGE_NAMESPACE},
            },
            {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": STORAGE_NAMESPACE, "namespace": STORAGE_NAMESPACE},
            },
            _storage_class(DEFAULT_STORAGE_CLASS, STORAGE_PROVISIONER, is_default=True),
            _storage_class(SMALL_STORAGE_CLASS, "kubernetes.io/no-provisioner", is_default=False),
            _cluster_role(
                "quire:coredns",
                [
                    _rule([""], ["endpoints", "services", "pods", "namespaces"], _READ),
                    _rule(["discovery.k8s.io"], ["endpointslices"], _READ),
                ],
            ),
            _cluster_role_binding("quire:coredns", "quire:coredns"),
            # One part of a throw-away cluster; its least privileges are not what is tested here.
            _cluster_role_binding("quire:storage", "cluster-admin"),
        ]
    )


def gpu_patch() -> Manifest:
    """A patch of the node's status: simulated GPUs that the real scheduler hands out."""
    count = {"nvidia.com/gpu": str(NUM_GPUS)}
    return {"status": {"capacity": count, "allocatable": count}}


def small_volume(name: str, path: str, capacity: str) -> Manifest:
    """A static volume on a folder whose size is enforced (see small_volumes)."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": capacity},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": SMALL_STORAGE_CLASS,
            "local": {"path": path},
            "nodeAffinity": {
                "required": {
                    "nodeSelectorTerms": [
                        {
                            "matchExpressions": [
                                {
                                    "key": "kubernetes.io/hostname",
                                    "operator": "In",
                                    "values": [NODE_NAME],
                                }
                            ]
                        }
                    ]
                }
            },
        },
    }


_READ = ("get", "list", "watch")


def _list(items: Sequence[Manifest]) -> Manifest:
    return {"apiVersion": "v1", "kind": "List", "items": list(items)}


def _storage_class(name: str, provisioner: str, *, is_default: bool) -> Manifest:
    annotations = {"storageclass.kubernetes.io/is-default-class": "true"} if is_default else {}
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name, "annotations": annotations},
        "provisioner": provisioner,
        "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Delete",
    }


def _rule(groups: Sequence[str], resources: Sequence[str], verbs: Sequence[str]) -> Manifest:
    return {"apiGroups": list(groups), "resources": list(resources), "verbs": list(verbs)}


def _cluster_role(name: str, rules: Sequence[Manifest]) -> Manifest:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": list(rules),
    }


def _cluster_role_binding(user: str, role: str) -> Manifest:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": user},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user},
        ],
    }
