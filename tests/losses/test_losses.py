import lightly.loss
import numpy as np
import pytest
import torch

from processes import start
from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import CLASS_NAMES
from terrafm_tg.losses import DINOLoss, DualCenter, PlaceContrast, teacher_entropy
from terrafm_tg.losses.dual_center import frequent_by_name, frequent_by_share

FREQUENT = (0, 7, 11)


def make_center(dim: int, alpha: float = 0.8) -> DualCenter:
    center = DualCenter(dim, momentum=0.9, alpha=alpha)
    center.set_frequent(FREQUENT)
    return center


def test_equals_a_float64_oracle() -> None:
    """Frequent, rare and unknown samples over several steps, some made of two micro-batches."""
    generator = np.random.default_rng(0)
    center, dim = make_center(32), 32
    c, c_h = np.zeros(dim), np.zeros(dim)
    for step in range(6):
        batches = [
            (generator.normal(loc=0.5, size=(2, n, dim)), generator.choice([0, 3, 7, 9, 11, -1], size=n))
            for n in ([5] if step % 2 else [4, 6])
        ]
        for logits, land_cover in batches:
            centered = center(torch.tensor(logits, dtype=torch.float32))
            np.testing.assert_allclose(centered, logits - 0.8 * c - 0.2 * c_h, atol=1e-5)
            center.accumulate(torch.tensor(logits, dtype=torch.float32), torch.tensor(land_cover))
        center.update()
        everything = np.concatenate([logits.reshape(-1, dim) for logits, _ in batches])
        chosen = np.concatenate([x[:, np.isin(kind, FREQUENT)].reshape(-1, dim) for x, kind in batches])
        c = 0.9 * c + 0.1 * everything.mean(axis=0)
        if len(chosen):
            c_h = 0.9 * c_h + 0.1 * chosen.mean(axis=0)
        np.testing.assert_allclose(center.centers, np.stack([c, c_h]), atol=1e-6)


def test_a_batch_without_frequent_samples_leaves_the_second_center_alone() -> None:
    center = make_center(8)
    center.accumulate(torch.randn(2, 4, 8), torch.tensor([0, 3, -1, 7]))
    center.update()
    before = center.centers.clone()
    assert before[1].abs().min() > 0
    center.accumulate(torch.randn(2, 3, 8), torch.tensor([3, -1, 9]))
    center.update()
    assert torch.equal(center.centers[1], before[1])
    assert not torch.equal(center.centers[0], before[0])


def test_an_update_without_samples_changes_nothing() -> None:
    center = make_center(8)
    center.centers.fill_(1.0)
    center.update()
    assert torch.equal(center.centers, torch.ones(2, 8))


def test_stays_float32_and_in_the_checkpoint() -> None:
    center = make_center(8)
    center.accumulate(torch.randn(2, 3, 8, dtype=torch.bfloat16), torch.tensor([0, 1, 2]))
    center.update()
    state = center.state_dict()
    assert set(state) == {"centers", "frequent"}
    assert state["centers"].dtype == torch.float32
    restored = DualCenter(8)
    restored.load_state_dict(state)
    assert torch.equal(restored.centers, center.centers)
    assert restored.frequent.nonzero().flatten().tolist() == list(FREQUENT)


def _share(rank: int, path: str, logits: torch.Tensor, land_cover: torch.Tensor, counts: list[int]) -> None:
    """Accumulates its samples in micro-batches of two steps' worth."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    share = slice(0, counts[0]) if rank == 0 else slice(counts[0], None)
    center = make_center(logits.shape[-1])
    for step in range(0, len(logits), 2):
        for micro in (step, step + 1):
            mine = logits[micro][:, share].clone()
            center.accumulate(mine, land_cover[micro, share])
            mine.fill_(torch.nan)  # what is under way does not read it any more
        center.update()
    torch.save(center.centers, f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path) -> None:
    """The second rank holds no frequent sample; means of rank means would differ from the joint mean."""
    counts = [3, 5]
    logits = torch.randn(4, 2, sum(counts), 16)
    land_cover = torch.tensor([0, 7, 3, 9, 9, -1, 4, 5]).expand(4, -1)
    joint = make_center(16)
    for step in range(0, len(logits), 2):
        joint.accumulate(torch.cat([logits[step], logits[step + 1]], dim=1), land_cover[:2].flatten())
        joint.update()
    ranks = [start(_share, rank, str(tmp_path), logits, land_cover, counts) for rank in (0, 1)]
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    assert len(list(tmp_path.glob("*.pt"))) == 2
    for path in tmp_path.glob("*.pt"):
        torch.testing.assert_close(torch.load(path), joint.centers, rtol=1e-6, atol=1e-7)


def test_frequent_exceeds_an_even_share_of_the_classes_present() -> None:
    share = np.array([0.5, 0, 0.2, 0.19, 0, 0, 0, 0.11, 0, 0, 0, 0])
    assert frequent_by_share(share) == [0]  # four classes: more than 0.25
    assert frequent_by_share(np.array([0.4, 0.3, 0.28, 0.02] + [0] * 8)) == [0, 1, 2]


def test_names_in_any_case() -> None:
    assert frequent_by_name(["tree cover", CLASS_NAMES[11].upper()]) == [0, 11]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: frequent_by_share(None), "land cover of every tile is unknown"),
        (lambda: frequent_by_share(np.zeros(12)), "land cover of every tile is unknown"),
        (lambda: frequent_by_share(np.eye(12)[4]), "1 class"),
        (lambda: frequent_by_name(["Jungle"]), "'Jungle'"),
        (lambda: frequent_by_name([]), "is empty"),
    ],
)
def test_no_frequent_class_gives_one_sentence(call, says: str) -> None:
    with pytest.raises(TerraFMError, match=says):
        call()


@pytest.mark.parametrize(("views", "batch", "dim"), [(2, 3, 16), (6, 5, 64), (10, 2, 257)])
def test_agrees_with_lightly_over_several_steps(views: int, batch: int, dim: int) -> None:
    """The loss, its gradient and the center, which lightly updates after each step."""
    torch.manual_seed(views)
    oracle = lightly.loss.DINOLoss(dim, student_temp=0.1, center_momentum=0.9)
    ours, center = DINOLoss(student_temp=0.1), DualCenter(dim, momentum=0.9, alpha=1.0)
    for step in range(5):
        teacher_temp = 0.04 + 0.005 * step
        teacher = torch.randn(2, batch, dim) + 0.3
        mine = torch.randn(views, batch, dim, requires_grad=True)
        theirs = mine.detach().clone().requires_grad_()
        loss = ours(mine, center(teacher), teacher_temp)
        center.accumulate(teacher, torch.randint(-1, 12, (batch,)))
        center.update()
        expected = oracle(list(teacher), list(theirs), teacher_temp=teacher_temp)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(center.centers[0], oracle.center[0, 0], rtol=1e-6, atol=1e-7)


def test_computes_in_float32_under_autocast() -> None:
    student, teacher = torch.randn(4, 8, 512), torch.randn(2, 8, 512)
    expected = DINOLoss()(student, teacher, 0.04)
    with torch.autocast("cpu", torch.bfloat16):
        loss = DINOLoss()(student, teacher, 0.04)
    assert loss.dtype == torch.float32
    assert loss == expected


def test_no_gradient_reaches_the_teacher() -> None:
    teacher = torch.randn(2, 2, 8, requires_grad=True)
    DINOLoss()(torch.randn(3, 2, 8, requires_grad=True), teacher, 0.04).backward()
    assert teacher.grad is None


def test_needs_a_pair_of_different_views() -> None:
    with pytest.raises(ValueError, match="no pair of different views"):
        DINOLoss()(torch.randn(1, 2, 8), torch.randn(1, 2, 8), 0.04)


def test_entropy_lies_between_one_prototype_and_all() -> None:
    uniform = teacher_entropy(torch.zeros(2, 3, 64), 0.04)
    torch.testing.assert_close(uniform, torch.full((2, 3), float(np.log(64))))
    assert teacher_entropy(100 * torch.eye(64)[:5], 0.04).abs().max() < 1e-6


def test_loss_minus_entropy_is_the_divergence() -> None:
    student, teacher = torch.randn(4, 3, 16), torch.randn(2, 3, 16)
    log_p, log_q = (teacher / 0.07).log_softmax(-1), (student / 0.1).log_softmax(-1)
    kl = [(log_p[t].exp() * (log_p[t] - log_q[s])).sum(-1).mean() for t in range(2) for s in range(4) if t != s]
    difference = DINOLoss()(student, teacher, 0.07) - teacher_entropy(teacher, 0.07).mean()
    torch.testing.assert_close(difference, torch.stack(kl).mean())


def contrast_of_places(student: np.ndarray, teacher: np.ndarray, temp: float) -> float:
    """Its definition, one pair of views and one tile at a time."""
    z = student / np.linalg.norm(student, axis=-1, keepdims=True)
    y = teacher / np.linalg.norm(teacher, axis=-1, keepdims=True)
    losses = []
    for t, s in [(t, s) for t in range(len(y)) for s in range(len(z)) if s != t]:
        similarity = np.exp(z[s] @ y[t].T / temp)
        losses += [-np.log(similarity[b, b] / similarity[b].sum()) for b in range(len(similarity))]
    return float(np.mean(losses))


def _contrast_share(rank: int, path: str, student: torch.Tensor, teacher: torch.Tensor) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    own = slice(3 * rank, 3 * rank + 3)
    torch.save(PlaceContrast(0.2)(student[:, own], teacher[:, own]), f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_contrast_of_places_is_its_definition_on_one_process_and_on_two(tmp_path) -> None:
    student, teacher = torch.randn(5, 6, 16), 3 * torch.randn(2, 6, 16)
    expected = contrast_of_places(student.double().numpy(), teacher.double().numpy(), 0.2)
    assert PlaceContrast(0.2)(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    ranks = [start(_contrast_share, rank, str(tmp_path), student, teacher) for rank in (0, 1)]
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    shares = [torch.load(tmp_path / f"{rank}.pt").item() for rank in (0, 1)]
    assert np.mean(shares) == pytest.approx(expected, rel=1e-5)


def test_contrast_of_places_falls_where_sensors_agree_and_not_where_tiles_do() -> None:
    places = torch.eye(8).expand(2, 8, 8)
    loss = PlaceContrast(0.1)
    assert loss(places, places) < 1e-3
    assert loss(places, places.flip(1)) > 9
    assert loss(torch.ones(2, 8, 8), places).item() == pytest.approx(np.log(8), rel=1e-5)
