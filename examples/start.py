"""Ten lines: handwritten digits on 20 clients, one model for all and one for each."""

import floco

federation = floco.load("digits").split(floco.Folds(5, share=0.9), clients=20, seed=0)
model = floco.model("mlp", federation)  # or any nn.Module, or a function that builds one

run = floco.fit(model, federation, floco.Floco(endpoints=3), rounds=10, lr=0.1, seed=0)

print(run.history[["round", "accuracy_global", "accuracy_personal"]])
print(run.clients[["client", "n_train", "accuracy_personal", "accuracy_global_local"]])
mine = run.personal("client-3")  # an ordinary nn.Module with this client's weights
print(run.predict(federation.x[:5].squeeze(1), "client-3"))  # from raw samples (N, 8, 8)
