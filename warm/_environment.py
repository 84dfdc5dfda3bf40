"""Which environment variables a forked child cannot make up for: those that libraries read when they are imported.

A test notes what they read and compares. Everything else, such as PS1 or MAKEFLAGS, the child gets from its caller.
"""

from __future__ import annotations

APPLIED = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"}
"""The first a child applies, the second is always 1 in the worker, and no accelerator has been touched there."""

FAMILIES = (
    # Python, the loader, memory
    *("PYTHON", "_PYTHON", "LD_", "DYLD_", "GLIBC_", "MALLOC_", "MIMALLOC_", "JE_", "ARROW_", "RUST_", "RAYON_"),
    # threads and linear algebra
    *("OMP_", "GOMP_", "KMP_", "MKL", "ONEDNN_", "DNNL_", "OPENBLAS_", "GOTO_", "BLIS_", "NVPL_", "VECLIB_"),
    *("NPY_", "NUMPY_", "NUMEXPR_", "SCIPY_", "SYMPY_", "MPMATH_", "SAGE_", "GFORTRAN_", "I_MPI_", "OMPI_", "MPI_"),
    # torch and what it computes on
    *("TORCH", "PYTORCH_", "PT2_", "AOT", "INDUCTOR_", "TRITON_", "CUTLASS_", "CUTEDSL_", "FX_", "FAKE_", "KINETO_"),
    *("COMPILE_", "PARTITIONER_", "DUMP_", "LOG_", "ENABLE_", "UNSAFE_", "ACC_", "CUDA_", "CUDNN_", "CUBLAS_"),
    *("NVIDIA_", "NCCL_", "HIP_", "HSA_", "ROC", "NPU_", "ZE_", "SYCL_", "ONEAPI_", "XLA_", "PJRT_", "INTEL_"),
    # models, the hub, terminals
    *("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_", "SAFETENSORS_", "ACCELERATE_", "USE_", "SM_", "OAUTH_"),
    *("OPENID_", "TYPER_", "CLICOLOR", "RUAMEL_", "PSUTIL_", "FSSPEC_", "OPENSSL_", "SSL_", "LC_"),
)
NAMES = {
    *("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR", "TEMP", "TMP"),
    *("LANG", "LANGUAGE", "TZ", "TERM", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "CI", "GITHUB_ACTIONS"),
    *("DISABLE_TELEMETRY", "DO_NOT_TRACK", "EAGER_IMPORT", "LOGLEVEL", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *(
        "DVC_SHOW_TRACEBACK",
        "PYCHARM_HOSTED",
        "SSLKEYLOGFILE",
        "SOURCE_DATE_EPOCH",
        "AZURE_LOG_LEVEL",
        "SQLITE_TMPDIR",
        "CXX",
    ),
}


def matters(name: str) -> bool:
    """Return whether a difference in this variable may change what a library is once it has been imported."""
    return name in NAMES or (name.startswith(FAMILIES) and name not in APPLIED)
