"""What a job asks Slurm for, from its needs and the user's site."""

import pytest
import yaml

from selfdistill.cli.requests import options
from selfdistill.plan.site import PROFILE, Site, machine_resources, slurm_resources
from selfdistill.schema.errors import UserError
from selfdistill.schema.runtime import Resources

SITE = {"slurm_account": "astro", "slurm_partition": "batch"}
NEEDS = Resources(gpus=4, mem_mb=1000, runtime_minutes=600, cpus=8)


def site(**more):
    return Site.of(SITE | more)


def test_one_machine_has_no_site():
    assert Site.of(None) is None
    assert Site.of({"tmpdir": "/tmp", "mem_mb": "500"}) is None


def test_the_shipped_profile_names_every_key_of_the_site_and_is_empty(project_root):
    shipped = yaml.safe_load((project_root / PROFILE).read_text())["default-resources"]
    assert set(shipped) == set(Site.model_fields)
    assert "slurm_account and slurm_partition are empty" in Site.of(shipped).problem


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"slurm_account": "none", "slurm_partition": "none"}, None),
        ({"slurm_account": "astro", "slurm_partition": ""}, "slurm_partition is empty"),
        ({"slurm_account": "", "slurm_partition": "x"}, "slurm_account is empty"),
    ],
)
def test_none_is_an_answer_and_empty_is_not(given, problem):
    found = Site.of(given).problem
    assert found is None if problem is None else problem in found


def test_a_wrong_form_of_gpus_is_named():
    with pytest.raises(UserError, match="default-resources: `gpus_as`.*gpu_s"):
        site(gpus_as="gpu_s")


def test_none_leaves_the_choice_to_slurm():
    requested = slurm_resources(NEEDS, Site.of({"slurm_account": "none", "slurm_partition": "NONE"}))
    assert requested["slurm_account"] == "" and requested["slurm_partition"] == ""


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "--gpus=4"),
        ({"gpu_type": "a100"}, "--gpus=a100:4"),
        ({"gpus_as": "gres"}, "--gres=gpu:4"),
        ({"gpus_as": "gres", "gpu_type": "a100"}, "--gres=gpu:a100:4"),
    ],
)
def test_gpus_are_requested_in_the_form_of_the_site(more, expected):
    line = options(NEEDS, site(**more)).split()
    assert [word for word in line if word.startswith(("--gpus", "--gres"))] == [expected]
    assert "--nodes=1" in line and not any(word.startswith("--ntasks-per-gpu") for word in line)


def test_the_options_name_account_partition_memory_time_and_cores():
    line = options(Resources(mem_mb=1500, runtime_minutes=90, cpus=3), site())
    assert line.startswith("-A astro -p batch -t 90 --mem 1500 ")
    assert "--cpus-per-task=3" in line and "--ntasks=1" in line


def test_jobs_with_gpus_have_a_partition_of_their_own_where_there_is_one():
    here = site(slurm_gpu_partition="a100")
    assert slurm_resources(NEEDS, here)["slurm_partition"] == "a100"
    assert slurm_resources(Resources(), here)["slurm_partition"] == "batch"


def test_several_nodes_ask_for_gpus_by_node():
    line = options(NEEDS.model_copy(update={"nodes": 2}), site())
    assert "--nodes=2" in line and "--gres=gpu:4" in line and "--gpus" not in line


def test_one_machine_divides_memory_time_and_gpus():
    assert machine_resources(NEEDS) == {"mem_mb": 1000, "runtime": 600, "gpu": 4}


@pytest.mark.parametrize(("minutes", "warning", "expected"), [(600, 300, 300), (6, 300, 180), (600, 0, None)])
def test_the_warning_comes_before_the_limit_and_never_in_the_first_half(minutes, warning, expected):
    needs = Resources(runtime_minutes=minutes, warning_seconds=warning)
    extra = slurm_resources(needs, site(slurm_extra="--qos=long"))["slurm_extra"]
    assert extra.endswith("--open-mode=append --qos=long")
    assert (f"--signal=TERM@{expected} " in extra) if expected else "--signal" not in extra
