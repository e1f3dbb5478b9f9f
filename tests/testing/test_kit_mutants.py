"""Every fault that the kit promises to find is found, by the check that is there for it; right ones pass all."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FAULTS = {
    "OtherFamilies": "test_its_head_is_complete",
    "MeasuresMoreThanItSays": "test_a_model_equals_itself",
    "IgnoresItsMask": "test_masks_are_respected",
    "LiesAboutCoupling": "test_cut_batches_equal_the_whole_unless_it_couples",
    "WeightsByTheBatch": "test_cut_batches_equal_the_whole_unless_it_couples",
    "Overflows": "test_large_gaps_stay_finite",
    "CutsTheGradient": "test_the_gradient_reaches_the_student_alone",
    "WritesToTheTeacher": "test_one_loss_and_one_weight_a_sample",
    "OneNumber": "test_one_loss_and_one_weight_a_sample",
    "RoundsToFloat": "test_the_gradient_is_that_of_the_loss",
    "TakesAnyOption": "test_unknown_options_are_refused",
    "RealTensors": "test_builds_on_the_meta_device",
    "CountsMeasurements": "test_what_it_adds_up_is_that_of_the_whole_batch_and_of_training_alone",
    "CountsBatches": "test_what_it_adds_up_is_that_of_the_whole_batch_and_of_training_alone",
    "CentresOverTheBatch": "test_cut_batches_equal_the_whole_unless_it_couples",
    "CountsPadding": "test_masked_positions_do_not_count",
    "DeclaresAnotherWidth": "test_gives_what_it_declares",
    "GlobalRandomState": "test_depends_on_its_generator_alone",
    "PythonsRandomState": "test_depends_on_its_generator_alone",
    "ReadsInSecret": "test_reads_only_what_it_declares",
    "MakesInSecret": "test_makes_what_it_declares",
    "ForgetsValidation": "test_makes_what_it_declares",
    "ChangesItsInput": "test_its_input_stays_as_it_was",
    "SplitsOverlap": "test_splits_do_not_overlap",
    "RepeatsAfterResume": "test_a_resumed_stream_goes_on_with_the_next_batch",
    "CannotBeSetBack": "test_a_stream_can_be_set_back",
    "DependsOnWorkers": "test_workers_change_nothing",
    "DeclaresAnotherSize": "test_batches_are_as_declared",
    "ChangesTheModel": "test_measuring_changes_nothing",
    "DrawsRandomNumbers": "test_measuring_changes_nothing",
    "SwitchesToEval": "test_measuring_changes_nothing",
    "EndsHigh": "test_it_ends_at_the_final_value",
    "ForgetsItsCount": "test_a_saved_one_goes_on_the_same",
    "LossyFamily": "test_facts_survive_json",
    "DropsTensors": "test_no_tensor_of_the_teacher_is_dropped_in_silence",
    "TrainsItsNeighbour": "test_a_site_trains_only_itself",
    "DeclaresOtherTaps": "test_taps_are_as_declared",
    "NamesUnknownParameters": "test_groups_name_real_parameters",
    "KeepsStateOutside": "test_state_dict_round_trip",
    "ViewsOtherTaps": "test_the_view_of_the_teacher_is_as_declared",
    "CountsWrong": "test_description_agrees_with_the_weights",
    "NotFrozen": "test_teacher_is_frozen_and_in_eval_mode",
    "GivesEverything": "test_a_run_stops_after_the_last_wanted_tap",
    "IgnoresTheSeed": "test_random_weights_have_the_same_architecture",
    "DependsOnChance": "test_it_runs_and_repeats",
}
RIGHT = (
    "Right",
    "Counts",
    "RightConnector",
    "RightPooling",
    "RightStep",
    "RightData",
    "RightMetric",
    "RightSchedule",
    "RightTarget",
    "RightSource",
    "RightStage",
    "KitFamily",
)


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Mutant -> checks that it failed, of one run of the kit in a process with the mutants' plugin."""
    xml = tmp_path_factory.mktemp("kit") / "kit.xml"
    files = os.pathsep.join(str(HERE / name) for name in ("mutant_plugin.py", "mutant_models.py"))
    env = {**os.environ, "XARCH_PLUGIN_FILES": files, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--junitxml={xml}"]
    kit = str(HERE / "mutant_kit.py")
    done = subprocess.run([*command, kit], cwd=HERE.parents[1], env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-2000:]
    found: dict[str, set[str]] = {}
    for case in ElementTree.parse(xml).getroot().iter("testcase"):
        bad = found.setdefault(case.attrib["classname"].rsplit(".Test", 1)[-1], set())
        if case.find("failure") is not None or case.find("error") is not None:
            bad.add(case.attrib["name"].split("[")[0])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("mutant", "check"), FAULTS.items())
def test_the_fault_is_found(mutant: str, check: str, failed: dict[str, set[str]]) -> None:
    assert check in failed[mutant]


@pytest.mark.slow
@pytest.mark.parametrize("right", RIGHT)
def test_what_is_right_passes(right: str, failed: dict[str, set[str]]) -> None:
    assert failed[right] == set()


@pytest.mark.slow
def test_no_mutant_is_forgotten(failed: dict[str, set[str]]) -> None:
    assert failed.keys() == {*FAULTS, *RIGHT}


@pytest.mark.slow
def test_a_place_that_is_no_tap(failed: dict[str, set[str]]) -> None:
    assert "test_places_are_taps_or_tensors" in failed["LossyFamily"]


@pytest.mark.slow
def test_a_stage_that_takes_any_option(failed: dict[str, set[str]]) -> None:
    assert "test_unknown_options_are_refused" in failed["DependsOnChance"]


def test_every_class_of_the_kit_has_a_mutant() -> None:
    from tests.testing import mutant_kit
    from xarch import testing

    bases = {base.__name__ for made in vars(mutant_kit).values() if isinstance(made, type) for base in made.__mro__}
    assert set(testing.__all__) <= bases
