"""Running the stages of dvc.yaml with Prefect: in parallel, with retries, on a schedule, on several machines."""

import os

# Read when the tools are imported, so set here, before any module below can import them: nothing is sent anywhere.
QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
}
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)
