"""The job *images* in diffusers: a diffusion of MNIST, a grid of draws.

As its tutorial on training has it, without its hub and its mixed precision.
python images_diffusers.py MNIST DRAWS.npy STEPS DRAWS
"""

import sys
from pathlib import Path

import numpy
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from diffusers.utils import make_image_grid, numpy_to_pil
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

data, target, steps, count = sys.argv[1:]
torch.manual_seed(0)
path = Path(data)
pixels = numpy.load(path / "mnist.npz" if path.is_dir() else path)["train_images"]
images = torch.tensor(pixels, dtype=torch.float32).unsqueeze(1) / 127.5 - 1
net = UNet2DModel(
    sample_size=28,
    in_channels=1,
    out_channels=1,
    layers_per_block=2,
    block_out_channels=(16, 32, 32),
    norm_num_groups=8,
    attention_head_dim=8,
    down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
)
noising = DDPMScheduler(num_train_timesteps=1000)
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
average = EMAModel(net.parameters(), decay=0.99)
loader = DataLoader(TensorDataset(images), batch_size=64, shuffle=True)
step = 0
while step < int(steps):
    for (x,) in loader:
        noise = torch.randn_like(x)
        t = torch.randint(0, noising.config.num_train_timesteps, (len(x),))
        loss = mse_loss(net(noising.add_noise(x, noise, t), t, return_dict=False)[0], noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        average.step(net.parameters())
        step += 1
        if step % 50 == 0:
            print(step, loss.item())
        if step == int(steps):
            break
average.copy_to(net.parameters())
net.eval()
sampler = DDIMScheduler.from_config(noising.config)
sampler.set_timesteps(25)
draws = torch.randn(int(count), 1, 28, 28)
with torch.no_grad():
    for t in sampler.timesteps:
        predicted = torch.cat([net(part, t, return_dict=False)[0] for part in draws.split(64)])
        draws = sampler.step(predicted, t, draws).prev_sample
grid = numpy_to_pil((draws[:64].permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1).numpy())
make_image_grid(grid, rows=len(grid) // 8, cols=8).save(Path(target).with_suffix(".png"))
numpy.save(target, draws.numpy())
