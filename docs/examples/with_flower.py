"""One round of federated learning in Flower's simulation: each client sends a set of so many kilobytes, the server trains on all.

python docs/examples/with_flower.py [CLIENTS]
"""

import sys
import time

import numpy
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader

import dim
from dim.nets.student import build_student
from dim.spec import to_uint8

DATA, BYTES = dim.load_recipe("digits-dim").data, 5000
client, server = ClientApp(), ServerApp()  # as `flwr run` takes them, too


def own_set(number: int, clients: int) -> dim.SyntheticSet:
    """Here a client's own images. Where these may not leave it: images of a generator that `dim.fit` trained on them."""
    data, source = dim.load_data(DATA), torch.Generator().manual_seed(0)
    # Dirichlet(0.1): most images of a class are those of one or two clients.
    shares = torch.tensor(numpy.random.default_rng(0).dirichlet([0.1] * clients, data.spec.num_classes))
    owner = torch.multinomial(shares[data.train.labels], 1, generator=source).squeeze(1)
    images, labels = data.train.batch((owner == number).nonzero().squeeze(1))
    return dim.SyntheticSet(to_uint8(images), labels, data.spec)


@client.query()
def send(message: Message, context: Context) -> Message:
    mine = own_set(int(context.node_config["partition-id"]), int(context.node_config["num-partitions"]))
    memory = dim.ReplayMemory(mine.spec, bytes=BYTES)
    memory.add(mine)
    return Message(RecordDict({"set": ArrayRecord(memory.state_dict())}), reply_to=message)


@server.main()
def receive(grid: Grid, context: Context) -> None:
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.1)
    asked = [Message(RecordDict(), dst_node_id=node, message_type="query") for node in nodes]
    sets, spec = [], dim.load_data(DATA).spec
    for reply in grid.send_and_receive(asked):
        memory = dim.ReplayMemory(spec, bytes=BYTES)
        memory.load_state_dict(reply.content["set"].to_torch_state_dict())
        print(f"{len(memory)} images of {len(memory.counts)} classes in {sum(memory.bytes_stored().values())} bytes")
        sets.append(memory.dataset())
    context.state["model"] = ArrayRecord(train(sets).state_dict())


def train(sets: list[dim.SyntheticSet], epochs: int = 30) -> nn.Module:
    model = build_student("convnet:width=32,depth=2", sets[0].spec, seed=0)  # any model that takes [-1, 1] images
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for epoch in range(epochs):
        for images, labels in DataLoader(ConcatDataset(sets), batch_size=50, shuffle=True):
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch}: loss {loss.item():.3f}")
    return model.eval()


def main(clients: int = 4) -> None:
    from flwr.simulation import run_simulation

    run_simulation(server, client, num_supernodes=clients)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
