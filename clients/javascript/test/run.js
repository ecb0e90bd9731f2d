// node test/run.js SCENARIO < arguments as JSON > result as JSON
import { WebSocket } from "ws";
import * as scenarios from "./scenarios.js";

let text = "";
for await (const piece of process.stdin) text += piece;
const given = JSON.parse(text);
const result = await scenarios[process.argv[2]]({ ...given, options: { WebSocket, ...given.options } });
process.stdout.write(JSON.stringify(result));
process.exit(0);
