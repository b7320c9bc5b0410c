"""Workers for sweeps as jobs of SLURM: ``python slurm.py``, which has to run while sweeps do.

It prints the address for ``--scheduler``. `certificates.sh` makes the files in `TLS`, which have to
lie where all nodes see them, as the runs, the data and the environment do.
"""

from pathlib import Path

from dask_jobqueue import SLURMCluster
from distributed.security import Security

TLS = Path("tls").resolve()
CERTIFICATE = str(TLS / "cert.pem")
KEY = str(TLS / "key.pem")

security = Security(
    require_encryption=True,
    tls_ca_file=str(TLS / "ca.pem"),
    tls_scheduler_cert=CERTIFICATE,
    tls_scheduler_key=KEY,
    tls_worker_cert=CERTIFICATE,
    tls_worker_key=KEY,
    tls_client_cert=CERTIFICATE,
    tls_client_key=KEY,
)

if __name__ == "__main__":
    cluster = SLURMCluster(
        queue="normal",
        cores=1,
        processes=1,
        memory="4GB",
        walltime="04:00:00",
        interface="ib0",  # the network between the nodes
        protocol="tls://",
        security=security,
        scheduler_options={"dashboard_address": "127.0.0.1:8787"},
        worker_extra_args=["--no-dashboard"],
        job_script_prologue=["source .venv/bin/activate", "export SPARSELIB_DATA=/scratch/data"],
    )
    cluster.scale(jobs=20)
    print(cluster.scheduler_address)
    input("return ends the cluster")
