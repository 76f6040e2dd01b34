import lightly.loss
import numpy as np
import pytest
import torch

from terrafm_tg.losses import DINOLoss, DualCenter, teacher_entropy


@pytest.mark.parametrize(("views", "batch", "dim"), [(2, 3, 16), (6, 5, 64), (10, 2, 257)])
def test_agrees_with_lightly_over_several_steps(views: int, batch: int, dim: int) -> None:
    """The loss, its gradient and the centre, which lightly updates after each step."""
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
