"""Every family keeps the promises of the contract."""

import pytest
import torch
from zoo import ZOO, Member

from probgen.testing import check_generative


@pytest.mark.parametrize("member", ZOO, ids=lambda member: member.name)
def test_member_conforms(member: Member):
    torch.manual_seed(0)
    objective = member.objective() if member.objective else None
    check_generative(member.gen(), *member.data(), objective=objective)
