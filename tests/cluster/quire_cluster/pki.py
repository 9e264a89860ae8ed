"""Keys and certificates of one life of the cluster, made by openssl (EC P-256: milliseconds)."""

import base64
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from quire_cluster.network import API_SERVICE_ADDRESS, NODE_ADDRESS, NODE_NAME
from quire_cluster.shell import run

_DAYS = "3650"
API_SERVER_URL = f"https://{NODE_ADDRESS}:6443"
_API_SERVER_NAMES = (
    "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,"
    f"DNS:kubernetes.default.svc.cluster.local,IP:127.0.0.1,IP:{NODE_ADDRESS},IP:{API_SERVICE_ADDRESS}"
)


@dataclass(frozen=True)
class Identity:
    """A certificate to be made: file name, subject, signing authority, whether it is a user's."""

    name: str
    subject: str
    authority: str = "ca"
    kubeconfig: bool = True


IDENTITIES = (
    Identity("apiserver", "/CN=kube-apiserver", kubeconfig=False),
    Identity("apiserver-kubelet", "/O=system:masters/CN=apiserver-kubelet", kubeconfig=False),
    Identity("front-proxy-client", "/CN=front-proxy-client", "front-proxy-ca", kubeconfig=False),
    Identity("admin", "/O=system:masters/CN=admin"),
    Identity("kubelet", f"/O=system:nodes/CN=system:node:{NODE_NAME}"),
    Identity("controller-manager", "/CN=system:kube-controller-manager"),
    Identity("scheduler", "/CN=system:kube-scheduler"),
    Identity("proxy", "/CN=system:kube-proxy"),
    Identity("coredns", "/CN=quire:coredns"),
    Identity("storage", "/CN=quire:storage"),
)


def create(folder: Path) -> None:
    """Make all keys, certificates and kubeconfigs in `folder`; whole or not at all."""
    if folder.is_dir():
        return
    staging = folder.with_name(f".{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True, mode=0o700)
    _key(staging / "service-accounts.key")
    run(["openssl", "ec", "-in", f"{staging}/service-accounts.key", "-pubout",
         "-out", f"{staging}/service-accounts.pub"])  # fmt: skip
    for authority in ("ca", "front-proxy-ca"):
        _authority(staging, authority)
    for identity in IDENTITIES:
        sign(staging, identity, staging)
        if identity.kubeconfig:
            text = kubeconfig(
                ca=(staging / "ca.crt").read_bytes(),
                certificate=(staging / f"{identity.name}.crt").read_bytes(),
                key=(staging / f"{identity.name}.key").read_bytes(),
            )
            (staging / f"{identity.name}.kubeconfig").write_text(text)
    staging.rename(folder)


def kubeconfig(*, ca: bytes, certificate: bytes, key: bytes) -> str:
    """A kubeconfig that carries its certificates inside, as JSON (which YAML contains)."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "quire",
                "cluster": {
                    "server": API_SERVER_URL,
                    "certificate-authority-data": base64.b64encode(ca).decode(),
                },
            }
        ],
        "users": [
            {
                "name": "user",
                "user": {
                    "client-certificate-data": base64.b64encode(certificate).decode(),
                    "client-key-data": base64.b64encode(key).decode(),
                },
            }
        ],
        "contexts": [{"name": "quire", "context": {"cluster": "quire", "user": "user"}}],
        "current-context": "quire",
    }
    return json.dumps(document, indent=1) + "\n"


def _key(path: Path) -> None:
    run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(path)])


def _authority(folder: Path, name: str) -> None:
    _key(folder / f"{name}.key")
    run(["openssl", "req", "-x509", "-new", "-key", f"{folder}/{name}.key", "-days", _DAYS,
         "-subj", f"/CN=quire-{name}", "-out", f"{folder}/{name}.crt"])  # fmt: skip


def sign(folder: Path, identity: Identity, out: Path) -> None:
    """`<out>/<name>.key` and `.crt`, signed by an authority of `folder`."""
    base = out / identity.name
    _key(base.with_suffix(".key"))
    request = run(["openssl", "req", "-new", "-key", f"{base}.key", "-subj", identity.subject])
    extensions = out / "extensions"
    extensions.write_text(
        f"subjectAltName={_API_SERVER_NAMES}\nextendedKeyUsage=serverAuth,clientAuth\n"
    )
    authority = folder / identity.authority
    run(["openssl", "x509", "-req", "-CA", f"{authority}.crt", "-CAkey", f"{authority}.key",
         "-CAcreateserial", "-days", _DAYS, "-extfile", str(extensions), "-out", f"{base}.crt"],
        stdin=request)  # fmt: skip
