"""Whether times are taken. Then memory that tensors free is kept, as in the commands: fresh memory would be most of the time."""

import pytest

from sgpn_arch.inference.memory import keep_freed_memory


@pytest.fixture(autouse=True, scope="session")
def measuring(request) -> bool:
    enabled = request.config.getoption("benchmark_enable")
    if enabled:
        keep_freed_memory()
    return enabled
