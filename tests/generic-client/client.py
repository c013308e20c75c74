#!/usr/bin/env python3
"""A coordinator as a generic gRPC client sees it: one that has never seen Tally's .proto file.

It asks by reflection what there is, builds the messages from what it is told, and calls. Once in the clear and once
over TLS, each time with the token that may train, the one that may look, a wrong one and none; and it watches the
health service until the coordinator has stopped. `client.py DIRECTORY-OF-THE-BINARIES`.
"""

import contextlib
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading

import grpc
import trustme
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

# Only a hang reaches it.
DEADLINE = 120
TRAIN, LOOK, WRONG = "a-secret-of-those-who-train", "a-secret-of-those-who-look", "a-secret-of-somebody-else"
CLUSTER = "tally.v1.Cluster"
SERVICES = {CLUSTER, "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
Code = grpc.StatusCode

passed = 0


def check(what, found, wanted):
    global passed
    if found != wanted:
        sys.exit(f"generic client: FAILED: {what}: {found!r} is not {wanted!r}")
    passed += 1
    print(f"generic client: ok: {what}")


def code_of(call):
    """What a call is answered with: its code, and the words."""
    try:
        answer = call()
        if isinstance(answer, grpc.Call):
            next(answer)
            answer.cancel()
        return Code.OK, ""
    except grpc.RpcError as error:
        return error.code(), error.details()


class Shown(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Shows a token with every call, as `grpcurl -H` does."""

    def __init__(self, token):
        self.token = token

    def with_token(self, details):
        metadata = [*(details.metadata or []), ("authorization", f"Bearer {self.token}")]
        return details._replace(metadata=metadata)

    def intercept_unary_unary(self, continuation, details, request):
        return continuation(self.with_token(details), request)

    def intercept_stream_stream(self, continuation, details, requests):
        return continuation(self.with_token(details), requests)


@contextlib.contextmanager
def coordinator(binaries, directory, tls):
    """A coordinator that waits for a worker, and its address."""
    files = {"train": TRAIN, "look": LOOK}
    for name, token in files.items():
        (directory / name).write_text(token)
    command = [binaries / "coordinator", "--workers", "1", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
    command += ["--model", "mlp", "--train-limit", "64", "--test-limit", "10", "--epochs", "1", "--run-dir", directory / "run"]
    command += ["--token-file", directory / "train", "--view-token-file", directory / "look"]
    if tls:
        command += ["--tls-cert", directory / "server.pem", "--tls-key", directory / "server.key"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    # A coordinator that hangs must not make this hang.
    watchdog = threading.Timer(DEADLINE, process.kill)
    watchdog.start()
    try:
        heard = []
        for line in process.stderr:
            heard.append(line)
            if found := re.search(r"listening on 127\.0\.0\.1:(\d+)", line):
                break
        else:
            sys.exit("generic client: the coordinator did not come up:\n" + "".join(heard))
        # Nobody must make it wait for a reader.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield process, f"localhost:{found[1]}"
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


class Client:
    """A client that knows what reflection has told it, with a token or none."""

    def __init__(self, address, credentials, token=None):
        if credentials and token:
            # The standard way over TLS; without TLS grpc refuses it.
            shown = grpc.access_token_call_credentials(token)
            self.channel = grpc.secure_channel(address, grpc.composite_channel_credentials(credentials, shown))
        else:
            channel = grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
            self.channel = grpc.intercept_channel(channel, Shown(token)) if token else channel

    def services(self):
        return set(ProtoReflectionDescriptorDatabase(self.channel).get_services())

    def describe(self):
        self.pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))
        return self.pool.FindServiceByName(CLUSTER)

    def method(self, described, name):
        """A method, and the class of what it is called with; made from the description alone."""
        method = described.methods_by_name[name]
        request = message_factory.GetMessageClass(method.input_type)
        answer = message_factory.GetMessageClass(method.output_type)
        kind = self.channel.stream_stream if method.client_streaming else self.channel.unary_unary
        path = f"/{CLUSTER}/{name}"
        call = kind(path, request_serializer=request.SerializeToString, response_deserializer=answer.FromString)
        return (lambda sent: call(sent, timeout=DEADLINE, wait_for_ready=True)), request


def play(binaries, tls):
    way = "over TLS" if tls else "in the clear"
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        credentials = None
        if tls:
            authority = trustme.CA()
            server = authority.issue_cert("localhost")
            server.private_key_pem.write_to_path(directory / "server.key")
            server.cert_chain_pems[0].write_to_path(directory / "server.pem")
            credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        with coordinator(binaries, directory, tls) as (process, address):
            talk(process, lambda token=None: Client(address, credentials, token), way)
            if tls:
                stranger = Client(address, grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes()))
                health = health_pb2_grpc.HealthStub(stranger.channel)
                code, _ = code_of(lambda: health.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE))
                check("a client that believes another authority does not speak", code, Code.UNAVAILABLE)
            stop(process, Client(address, credentials), way)


def talk(process, client, way):
    nobody, guesser, looker, trainer = client(), client(WRONG), client(LOOK), client(TRAIN)
    for who, name in [(looker, "the view token"), (trainer, "the train token")]:
        check(f"{name} lists the services by reflection, {way}", who.services(), SERVICES)
    for who, name in [(nobody, "no token"), (guesser, "a wrong token")]:
        check(f"{name} is told nothing by reflection, {way}", code_of(who.services)[0], Code.UNAUTHENTICATED)

    described = trainer.describe()
    methods = {method.name for method in described.methods}
    check(f"the cluster's methods are described, {way}", methods, {"Control", "Gradients", "Status"})
    for who, name in [(trainer, "the train token"), (looker, "the view token")]:
        call, request = who.method(described, "Status")
        status = call(request())
        told = (status.phase, status.workers_wanted, len(status.workers), status.program)
        check(f"{name} is told the status, {way}", told, ("waiting", 1, 0, "mnist (mlp)"))
    for who, name, words in [(nobody, "no token", "--token-file"), (guesser, "a wrong token", "not this coordinator's")]:
        call, request = who.method(described, "Status")
        code, details = code_of(lambda: call(request()))
        check(f"{name} is told no status, but what to do, {way}", (code, words in details), (Code.UNAUTHENTICATED, True))

    # A worker's first words, made from the description.
    call, message = trainer.method(described, "Control")
    hello = message()
    hello.hello.protocol, hello.hello.name, hello.hello.build = 1, "snake", "0"
    answers = call(iter([hello]))
    welcome = next(answers)
    check(f"the train token is welcomed, {way}", (welcome.WhichOneof("body"), welcome.welcome.program), ("welcome", "mnist"))
    answers.cancel()
    call, _ = looker.method(described, "Control")
    code, details = code_of(lambda: call(iter([hello])))
    check(f"the view token is not, {way}", (code, "for looking" in details), (Code.PERMISSION_DENIED, True))
    for who, name in [(nobody, "no token"), (guesser, "a wrong token")]:
        call, _ = who.method(described, "Gradients")
        code, _ = code_of(lambda: call(iter([])))
        check(f"{name} adds to no sum, {way}", code, Code.UNAUTHENTICATED)

    health = health_pb2_grpc.HealthStub(nobody.channel)
    for service in ["", CLUSTER]:
        answer = next(health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE)).status
        if answer != SERVING:
            # It is ready as soon as its driver answers.
            watch = health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE)
            next(update for update in watch if update.status == SERVING)
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE)
        check(f"anyone is told the health of {service or 'all'!r}, {way}", answer.status, SERVING)
    code, _ = code_of(lambda: health.Check(health_pb2.HealthCheckRequest(service="tally.v1.Nothing"), timeout=DEADLINE))
    check(f"what is not there has no health, {way}", code, Code.NOT_FOUND)
    check(f"the coordinator still runs, {way}", process.poll(), None)


def stop(process, nobody, way):
    health = health_pb2_grpc.HealthStub(nobody.channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service=CLUSTER), timeout=DEADLINE)
    check(f"the health is watched, {way}", next(watch).status, SERVING)
    process.send_signal(signal.SIGTERM)
    last, code = SERVING, Code.OK
    try:
        for update in watch:
            last = update.status
    except grpc.RpcError as error:
        code = error.code()
    check(f"one that stops says so to those who watch, {way}", last, NOT_SERVING)
    check(f"and ends what they watch, {way}", code in (Code.OK, Code.UNAVAILABLE, Code.CANCELLED), True)
    check(f"it ends well, {way}", process.wait(DEADLINE), 0)
    code, _ = code_of(lambda: health.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE))
    check(f"then there is nobody, {way}", code, Code.UNAVAILABLE)


def main():
    binaries = pathlib.Path(sys.argv[1]).absolute()
    for tls in [False, True]:
        play(binaries, tls)
    print(f"generic client: {passed} passed, 0 failed")


main()
