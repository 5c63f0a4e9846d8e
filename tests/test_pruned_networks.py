"""A pruned network is an ordinary one: it compiles, is copied, converted and trained on."""

import copy
import pickle

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import bayesprune as bp

MODELS = {
    "bayesprune:lenet5": (1, 28, 28),
    "bayesprune:resnet20": (3, 32, 32),
    "torchvision:mobilenet_v3_small": (3, 32, 32),
}


@pytest.fixture(params=MODELS)
def pruned(request):
    shape = MODELS[request.param]
    network = bp.models.load(request.param)
    image = torch.randn(4, *shape)
    groups = bp.trace_groups(network, image)
    scores = bp.criteria.Random().scores(network, groups, [])
    plan = bp.select(scores, bp.KeepFraction(0.5), groups=groups)
    # Batch norm of a few 1x1 maps would magnify rounding; dropout would differ.
    return bp.remove_channels(network, plan, image).eval(), image


def gradients(network, image):
    network.zero_grad()
    output = network(image)
    output.square().mean().backward()
    return output.detach(), [p.grad.clone() for p in network.parameters()]


def assert_same(found, expected):
    torch.testing.assert_close(found[0], expected[0])
    for a, b in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item() + 1e-12)


def test_torch_compile(pruned):
    network, image = pruned
    expected = gradients(network, image)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    assert_same(gradients(compiled, image), expected)


@pytest.fixture
def process_group(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/g", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_distributed_data_parallel(pruned, process_group):
    network, image = pruned
    expected = gradients(network, image)
    assert_same(gradients(DistributedDataParallel(network), image), expected)


@pytest.mark.parametrize(
    "again",
    [
        copy.deepcopy,
        lambda network: pickle.loads(pickle.dumps(network)),
        lambda network: copy.deepcopy(network).double().float(),
    ],
    ids=["deepcopy", "pickle", "dtype"],
)
def test_copies(pruned, again):
    network, image = pruned
    copied = again(network)
    assert_same(gradients(copied, image), gradients(network, image))
    own = {p.data_ptr() for p in network.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in copied.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(pruned, dtype):
    network, image = pruned
    output, grads = gradients(network.to(dtype), image.to(dtype))
    assert output.dtype == dtype
    assert all(g.dtype == dtype and g.isfinite().all() for g in grads)


def test_training_goes_on(pruned):
    network, image = pruned
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    before = [p.clone() for p in network.parameters()]
    loss = nn.functional.cross_entropy(network(image), torch.zeros(len(image)).long())
    loss.backward()
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
