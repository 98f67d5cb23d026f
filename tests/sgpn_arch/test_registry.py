"""BasicSR's registries without BasicSR: the same objects, whoever imports what first, and nothing else imported."""

import os
import subprocess
import sys

import pytest

OURS = "import sys\nfrom sgpn_arch import registry\n"


def run(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_registries_imports_neither_basicsr_nor_torch():
    run(OURS + "assert not {'basicsr', 'torch', 'torchvision', 'numpy'} & set(sys.modules)")


def test_a_plugin_that_imports_basicsrs_registry_meets_ours():
    """And does not pay for all of BasicSR."""
    run(
        OURS
        + "from basicsr.utils.registry import ARCH_REGISTRY\n"
        + "assert ARCH_REGISTRY is registry.ARCH_REGISTRY and 'basicsr' not in sys.modules"
    )


@pytest.mark.slow
def test_all_of_basicsr_registers_beside_us():
    """Imported whole, as an attribute, by our function, or before us: always the same five objects."""
    run(
        OURS
        + "registry.load_basicsr()\n"
        + "import basicsr.utils.registry, basicsr.utils.registry as by_name\n"
        + "assert basicsr.utils.registry is by_name\n"
        + "for name in ('ARCH', 'DATASET', 'LOSS', 'METRIC', 'MODEL'):\n"
        + "    assert getattr(by_name, f'{name}_REGISTRY') is getattr(registry, f'{name}_REGISTRY')\n"
        + "assert 'EDSR' in registry.ARCH_REGISTRY and 'L1Loss' in registry.LOSS_REGISTRY\n"
    )


@pytest.mark.slow
def test_a_name_of_basicsrs_is_found_when_it_is_asked_for():
    run(
        OURS
        + "from sgpn_arch import build_network, find_arch\n"
        + "find_arch('SGPN')\nassert 'basicsr' not in sys.modules\n"
        + "network = build_network({'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1})\n"
        + "assert type(network).__module__ == 'basicsr.archs.edsr_arch'\n"
    )
