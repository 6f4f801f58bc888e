"""Training in two processes, on the CPU: data parallel, and with sharded parameters."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

import fxhash
from tests.helpers import assert_same_outputs, smallest_transform, trainable
from tests.models import MODELS
from tests.training.test_tools import ConvNet, Transformer, loss_of

pytestmark = pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(), reason="this torch can't use gloo"
)
can_shard = hasattr(torch.cpu.Stream, "record_event")
only_if_it_can_shard = pytest.mark.skipif(
    not can_shard,
    reason="before torch 2.7, FSDP2 runs no model on the CPU: it records events of CPU streams, which could not "
    "(https://github.com/pytorch/pytorch/pull/145935)",
)

PROCESSES = 2
STEPS = 4
COMPRESS = 0.3
CASES = {
    "ConvNet": (ConvNet, lambda: torch.randn(8, 3, 6, 6)),
    "Transformer": (Transformer, lambda: torch.randint(0, 30, (8, 5))),
    "TiedEmbedding": (MODELS["TiedEmbedding"][0], lambda: torch.randint(0, 30, (8, 5))),
}
# The first of them with factors that are trained in 4 bits.
IN_BITS = "ConvNet in 4 bits"
CASES[IN_BITS] = CASES["ConvNet"]
every_case = pytest.mark.parametrize("name", CASES)


def build(name, seed=0):
    torch.manual_seed(0)
    model, batch = CASES[name]
    gm = smallest_transform(model(), COMPRESS, seed=seed)
    return fxhash.quantize_factors(gm, 4) if name == IN_BITS else gm, batch()


def train(model, batch):
    """Losses of a few steps, and then a state dict whose values stay as they are."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    held = [*model.parameters(), *(state["momentum_buffer"] for state in optimizer.state.values())]
    return torch.stack(losses), [local(tensor).numel() for tensor in held]


def local(tensor):
    """The part of a tensor that this process holds."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def count_and_reduce(counted, bucket):
    """What DDP does to gradients by default, counting their bytes."""
    counted.append(bucket.buffer().nbytes)
    sent = distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
    return sent.then(lambda future: future.value()[0] / PROCESSES)


def data_parallel(name, rank, folder):
    """Train half of each batch; process 0 saves. The seeds differ: what counts is that of process 0."""
    gm, batch = build(name, seed=rank)
    model, counted = DistributedDataParallel(gm), []
    model.register_comm_hook(counted, count_and_reduce)
    losses, _ = train(model, batch[rank::PROCESSES])
    if rank == 0:
        fxhash.save(model.module, folder / f"{name}.safetensors")
    fast, _ = build(name, seed=rank)
    fast = DistributedDataParallel(fxhash.lower_for_training(fast))
    losses_lowered, _ = train(fast, batch[rank::PROCESSES])
    dense, counted_dense = DistributedDataParallel(fxhash.materialize(gm)), []
    dense.register_comm_hook(counted_dense, count_and_reduce)
    train(dense, batch[rank::PROCESSES])
    return {
        "losses": losses,
        "losses lowered for training": losses_lowered,
        "state": gm.state_dict(),
        "bytes a step": sum(counted) / STEPS,
        "bytes a step of the dense model": sum(counted_dense) / STEPS,
    }


def sharded(name, rank, folder):
    """The same with parameters, gradients and optimizer state in shards; process 0 saves what it gathers."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh("cpu", (PROCESSES,))
    gm, batch = build(name)
    half = batch[rank::PROCESSES]
    fully_shard(gm, mesh=mesh)
    losses, held = train(gm, half)
    gathered = get_model_state_dict(gm, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        whole, _ = build(name, seed=1)
        whole.load_state_dict(gathered)
        fxhash.save(whole, folder / f"{name}.safetensors")
    again, _ = build(name, seed=1)
    fully_shard(again, mesh=mesh)
    from_process_0 = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(again, gathered, options=from_process_0)
    narrow, _ = build(name)
    fully_shard(narrow, mesh=mesh, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    return {
        "losses": losses,
        "state": {
            key: tensor.full_tensor() for key, tensor in gm.state_dict().items() if hasattr(tensor, "full_tensor")
        },
        "held": held,
        "same again": torch.equal(again(batch), gm(batch)),
        "mixed precision": error_of(lambda: train(narrow, half)),
        "saving a shard": error_of(lambda: fxhash.save(gm, folder / f"{rank}.safetensors")),
    }


def error_of(function):
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def run_process(rank, task, folder):
    """Run a task for every case in one of the processes, and leave the results in a file."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=(folder / "rendezvous").as_uri(),
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=60),
    )
    try:
        torch.save({name: task(name, rank, folder) for name in CASES}, folder / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


def run_processes(task, folder):
    """The results of all processes: for each case, one a process."""
    multiprocessing.spawn(run_process, (task, folder), nprocs=PROCESSES)
    results = [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]
    return {name: [result[name] for result in results] for name in CASES}


@pytest.fixture(scope="module")
def data_parallel_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data_parallel")


@pytest.fixture(scope="module")
def data_parallel_results(data_parallel_folder):
    return run_processes(data_parallel, data_parallel_folder)


@pytest.fixture(scope="module")
def sharded_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def sharded_results(sharded_folder):
    return run_processes(sharded, sharded_folder)


def assert_trained_as_in_one_process(name, results, folder):
    gm, batch = build(name)
    losses, _ = train(gm, batch)
    assert losses[-1] < losses[0]
    torch.testing.assert_close(torch.stack([result["losses"] for result in results]).mean(0), losses, rtol=1e-4, atol=0)
    assert not torch.equal(results[0]["losses"], results[1]["losses"]), "each has a half of its own"
    for result in results:
        expected = {key: tensor for key, tensor in gm.state_dict().items() if key in result["state"]}
        assert expected.keys() >= dict(gm.named_parameters()).keys()
        torch.testing.assert_close(result["state"], expected, rtol=1e-4, atol=1e-5)
    saved = fxhash.load(folder / f"{name}.safetensors", CASES[name][0]())
    assert_same_outputs(gm, saved, batch)


@every_case
def test_data_parallel_training_equals_one_process(name, data_parallel_results, data_parallel_folder):
    assert_trained_as_in_one_process(name, data_parallel_results[name], data_parallel_folder)


@every_case
def test_data_parallel_training_of_what_is_lowered_for_it_is_the_same(name, data_parallel_results):
    for result in data_parallel_results[name]:
        torch.testing.assert_close(result["losses lowered for training"], result["losses"], rtol=1e-4, atol=0)


@every_case
def test_data_parallel_training_sends_the_compressed_size(name, data_parallel_results):
    """Bytes of gradients that are reduced in a step, by measurement."""
    gm, _ = build(name)
    dense = CASES[name][0]()
    for result in data_parallel_results[name]:
        assert result["bytes a step"] == 4 * trainable(gm)
        assert result["bytes a step of the dense model"] == 4 * trainable(dense)
        assert result["bytes a step"] <= gm.smh_generator.plan.compress * result["bytes a step of the dense model"]


@pytest.mark.slow
@only_if_it_can_shard
@every_case
def test_sharded_training_equals_one_process(name, sharded_results, sharded_folder):
    assert_trained_as_in_one_process(name, sharded_results[name], sharded_folder)
    assert all(result["same again"] for result in sharded_results[name]), "loaded into another sharded model"


@pytest.mark.slow
@only_if_it_can_shard
@every_case
def test_each_process_holds_half_of_parameters_and_optimizer_state(name, sharded_results):
    gm, _ = build(name)
    held = [sum(result["held"]) for result in sharded_results[name]]
    assert sum(held) == 2 * trainable(gm)
    for each in held:
        assert 0.9 < each / trainable(gm) < 1.1


@pytest.mark.slow
@only_if_it_can_shard
def test_saving_a_sharded_model_says_what_to_do(sharded_results):
    for result in sharded_results["ConvNet"]:
        assert result["saving a shard"].startswith("CheckpointError: 'smh_generator.right' is sharded")


@pytest.mark.slow
@only_if_it_can_shard
@every_case
def test_sharded_training_in_mixed_precision(name, sharded_results):
    for result in sharded_results[name]:
        assert result["mixed precision"] == ""
