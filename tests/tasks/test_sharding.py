import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

from terrafm_tg.errors import TerraFMError
from terrafm_tg.tasks.sharding import check_strategy, number_parameters


def test_the_older_fsdp_is_refused_with_one_sentence() -> None:
    with pytest.raises(TerraFMError, match=r"FSDPStrategy flattens parameters.*conf/hardware/fsdp\.yaml"):
        check_strategy(FSDPStrategy())
    check_strategy(ModelParallelStrategy())
    check_strategy(DDPStrategy())


def test_an_optimiser_reads_its_state_with_the_models_numbers() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    model[0].requires_grad_(False)
    groups = [{"params": [model[1].bias]}, {"params": [model[1].weight]}]
    one, two = torch.optim.AdamW(groups), torch.optim.AdamW([dict(group) for group in groups])
    model(torch.ones(1, 2)).sum().backward()
    one.step()
    state = number_parameters(one.state_dict(), one, model)
    assert [group["params"] for group in state["param_groups"]] == [[3], [2]]
    assert state["state"][2]["exp_avg"].shape == (2, 3)
    two.load_state_dict(state)
    for parameter in (model[1].bias, model[1].weight):
        assert torch.equal(two.state[parameter]["exp_avg"], one.state[parameter]["exp_avg"])
