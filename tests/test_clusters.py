"""The recipes for clusters of others, held against what those document; they do not run here."""

import ast
import inspect
import json
import re
import shutil
import ssl
import subprocess

import jsonschema
import pytest
import yaml
from sweeping import ROOT

from sparselib.sweep.__main__ import _parser

RECIPES = ROOT / "book/clusters"
SCHEMAS = ROOT / "tests/schemas"


def schema(name):
    return json.loads((SCHEMAS / name).read_text(encoding="utf-8"))


def closed(node):
    """Return a schema in which a key that is not named is an error, not left out without a word."""
    if isinstance(node, list):
        return [closed(part) for part in node]
    if not isinstance(node, dict):
        return node
    found = {key: closed(part) for key, part in node.items()}
    if isinstance(node.get("properties"), dict) and node.get("type") == "object":
        found.setdefault("additionalProperties", False)
    return found


DOCUMENTS = list(yaml.safe_load_all((RECIPES / "kubernetes.yml").read_text(encoding="utf-8")))
CLUSTER, JOB = DOCUMENTS
DASK = closed(schema("daskcluster.json"))


def faults(value, wanted=DASK):
    return [error.message for error in jsonschema.Draft202012Validator(wanted).iter_errors(value)]


def test_the_cluster_on_kubernetes_is_as_its_definition_says():
    assert (CLUSTER["apiVersion"], CLUSTER["kind"]) == ("kubernetes.dask.org/v1", "DaskCluster")
    assert faults({"spec": CLUSTER["spec"]}) == []
    pod = {"$defs": DASK["$defs"], "$ref": "#/$defs/pod"}
    assert (JOB["apiVersion"], JOB["kind"]) == ("batch/v1", "Job")
    assert faults(JOB["spec"]["template"]["spec"], pod) == []


def test_a_mistyped_key_of_it_is_found():
    text = json.dumps({"spec": CLUSTER["spec"]})
    assert faults(json.loads(text.replace("mountPath", "mountpath")))
    assert faults(json.loads(text.replace('"replicas": 16', '"replicas": "16"')))
    assert faults(json.loads(text.replace("readinessProbe", "readynessProbe")))


def container(kind):
    (found,) = CLUSTER["spec"][kind]["spec"]["containers"]
    return found["args"]


@pytest.mark.parametrize("kind", ["scheduler", "worker"])
def test_dasks_own_commands_know_the_arguments(kind):
    command = pytest.importorskip(f"distributed.cli.dask_{kind}").main
    name, *arguments = container(kind)
    assert name == f"dask-{kind}"
    assert "--tls-cert=/tls/cert.pem" in arguments
    given = set(re.findall(r"--[a-z-]+", " ".join(arguments)))
    assert given <= {option for p in command.params for option in (*p.opts, *p.secondary_opts)}


def test_the_job_gives_arguments_of_a_sweep_and_the_service_is_the_cluster_s():
    (found,) = JOB["spec"]["template"]["spec"]["containers"]
    options = _parser().parse_args(found["args"])
    assert (ROOT / options.file).is_file()
    assert options.scheduler == f"tls://{CLUSTER['metadata']['name']}-scheduler:8786"
    assert options.scheduler in container("worker")
    service = CLUSTER["spec"]["scheduler"]["service"]
    assert service["selector"]["dask.org/cluster-name"] == CLUSTER["metadata"]["name"]
    assert service["ports"][0]["port"] == 8786


def slurm_arguments():
    tree = ast.parse((RECIPES / "slurm.py").read_text(encoding="utf-8"))
    (call,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "SLURMCluster"
    ]
    return {keyword.arg for keyword in call.keywords}


def test_the_cluster_on_slurm_takes_its_arguments():
    assert slurm_arguments() <= set(schema("slurmcluster.json")["arguments"])
    assert "protocol" in slurm_arguments()


def test_the_arguments_of_slurm_are_those_of_the_package():
    slurm = pytest.importorskip("dask_jobqueue.slurm")
    core = pytest.importorskip("dask_jobqueue.core")
    known = [
        inspect.signature(kind.__init__).parameters
        for kind in (core.JobQueueCluster, core.Job, slurm.SLURMJob)
    ]
    assert set(schema("slurmcluster.json")["arguments"]) <= {
        name for part in known for name in part
    }


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
def test_the_certificates_are_accepted_by_their_authority_alone(tmp_path):
    for name in ("one", "other"):
        command = ["sh", str(RECIPES / "certificates.sh"), str(tmp_path / name)]
        subprocess.run(command, capture_output=True, check=True)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["ca.pem", "cert.pem", "key.pem"]
    assert (tmp_path / "one/key.pem").stat().st_mode & 0o077 == 0
    context = ssl.create_default_context(cafile=str(tmp_path / "one/ca.pem"))
    context.load_cert_chain(tmp_path / "one/cert.pem", tmp_path / "one/key.pem")
    for name, code in (("one", 0), ("other", 2)):
        command = ["openssl", "verify", "-CAfile", str(tmp_path / "one/ca.pem")]
        done = subprocess.run([*command, str(tmp_path / name / "cert.pem")], capture_output=True)
        assert done.returncode == code
