// What the operator's page says, added to the console's words.
import { WORDS } from "./words.js";

Object.assign(WORDS.en, {
  plTitle: "Pools and workers", plHint: "What every pool does now, and how many workers its load needs. From what was measured here, once a second.",
  plEmpty: "No pool is known here yet. Start a worker: forebay worker --broker ...",
  plGateway: "This gateway", plConnections: "Connections", plUp: "Up for", plVersion: "Version", plFailed: "Given up",
  plWorkers: "Workers", plNeeded: "Needed", plSlots: "Slots", plRunning: "Running", plQueued: "Waiting", plSpare: "Room for", plNow: "Wait now",
  plRtf: "RTF", plService: "A job takes", plRate: "Jobs a second", plLoad: "Load", plParked: "Paused",
  plWait: "Needed: so that 95 of 100 wait less than a second, with the load of now.",
  plEnough: "enough for what comes now", plMore: (n) => n === 1 ? "one more worker is needed" : `${n} more workers are needed`, plNobody: "no worker is ready", plUnknown: "not measured yet",
  plSlotsBusy: (n, of) => `${n} of ${of} ${of === 1 ? "slot" : "slots"} busy`, plLost: "The gateway does not answer. What stands here is old.", plAgain: "Try again", plSpark: "running and waiting in the last two minutes",
});
Object.assign(WORDS.zh, {
  plTitle: "资源池与工作进程", plHint: "每个资源池此刻在做什么，当前负载需要多少工作进程。数据来自本机实测，每秒更新。",
  plEmpty: "还没有资源池。启动一个工作进程：forebay worker --broker ...",
  plGateway: "本网关", plConnections: "连接", plUp: "已运行", plVersion: "版本", plFailed: "已放弃",
  plWorkers: "工作进程", plNeeded: "需要", plSlots: "槽位", plRunning: "运行中", plQueued: "等待中", plSpare: "还可接入", plNow: "当前等待",
  plRtf: "RTF", plService: "单个任务", plRate: "每秒任务", plLoad: "负载", plParked: "暂停",
  plWait: "“需要”：按当前负载，使 95% 的请求等待不到一秒。",
  plEnough: "足够应付当前负载", plMore: (n) => `还需要 ${n} 个工作进程`, plNobody: "没有就绪的工作进程", plUnknown: "尚未测得",
  plSlotsBusy: (n, of) => `${of} 个槽位中 ${n} 个在用`, plLost: "网关没有回应，这里显示的是旧数据。", plAgain: "重试", plSpark: "最近两分钟的运行与等待",
});
