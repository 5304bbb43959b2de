"""An executor that knows of its agent what the public API says. Its tasks are names on a list."""

import base64
import glob
import http.client
import json
import os
import time
import uuid

WHO = {
    "framework_id": {"value": os.environ["MESOS_FRAMEWORK_ID"]},
    "executor_id": {"value": os.environ["MESOS_EXECUTOR_ID"]},
}
HEADERS = {
    "Content-Type": "application/json",
    "Authorization": "Bearer " + os.environ["MESOS_EXECUTOR_AUTHENTICATION_TOKEN"],
}
tasks, unacknowledged_tasks, unacknowledged_updates = {}, {}, {}


def write_down(line):
    for directory in (os.environ["MESOS_SANDBOX"], "/ledger"):
        with open(directory + "/" + WHO["executor_id"]["value"], "a") as ledger:
            ledger.write(line + "\n")


def post(call):
    connection = http.client.HTTPConnection(os.environ["MESOS_AGENT_ENDPOINT"], timeout=30)
    connection.request("POST", "/api/v1/executor", json.dumps({**WHO, **call}), HEADERS)
    return connection.getresponse()


def call(it):
    try:
        answer = post(it)
        assert answer.status == 202, answer.read()
    except (OSError, http.client.HTTPException):
        pass  # Said again with the next subscription, if it has to be.


def update(task, state):
    status = {"task_id": task["task_id"], "state": state, "uuid": base64.b64encode(uuid.uuid4().bytes).decode()}
    unacknowledged_updates[status["uuid"]] = {"status": status}
    if state != "TASK_RUNNING":
        del tasks[task["task_id"]["value"]]
    call({"type": "UPDATE", "update": {"status": status}})


def limit():
    paths = glob.glob("/sys/fs/cgroup/memory.max") + glob.glob("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    with open(paths[0]) as file:
        return file.read().strip()


def hear(event):
    kind = event["type"]
    if kind == "LAUNCH":
        task = event["launch"]["task"]
        name = task["task_id"]["value"]
        write_down("launch " + name)
        tasks[name] = unacknowledged_tasks[name] = task
        update(task, "TASK_RUNNING")
    elif kind == "KILL":
        update(tasks[event["kill"]["task_id"]["value"]], "TASK_KILLED")
    elif kind == "ACKNOWLEDGED":
        unacknowledged_updates.pop(event["acknowledged"]["uuid"], None)
        unacknowledged_tasks.pop(event["acknowledged"]["task_id"]["value"], None)
    elif kind == "MESSAGE":
        words = base64.b64decode(event["message"]["data"]).decode()
        if words == "die":
            os._exit(3)
        write_down(words + " " + limit())
        call({"type": "MESSAGE", "message": {"data": event["message"]["data"]}})
    elif kind == "SHUTDOWN":
        for task in list(tasks.values()):
            update(task, "TASK_KILLED")
        os._exit(0)


def subscribe():
    what = {
        "unacknowledged_tasks": list(unacknowledged_tasks.values()),
        "unacknowledged_updates": list(unacknowledged_updates.values()),
    }
    stream = post({"type": "SUBSCRIBE", "subscribe": what})
    assert stream.status == 200, stream.read()
    while length := stream.readline():
        hear(json.loads(stream.read(int(length))))


write_down("begin")
while True:
    try:
        subscribe()
    except (OSError, http.client.HTTPException, ValueError):
        pass
    # What ends while nobody can be told.
    for task in [task for task in tasks.values() if task.get("data") == "bGFzdA=="]:
        update(task, "TASK_FINISHED")
    time.sleep(0.1)
