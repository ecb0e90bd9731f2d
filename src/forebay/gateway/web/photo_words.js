// What the photo page says, added to the console's words.
import { WORDS } from "./words.js";

Object.assign(WORDS.en, {
  photosTitle: "Photo enhancement", photosLead: "Drop your photos. Watch them come back tile by tile.",
  photosHint: "Noise goes, detail stays, and the picture is twice as large. Each photo that waits shows its place and its time. The photos stay on this machine's gateway and go after a day.",
  choose: "Choose photos", level: "Quality", levels: { fast: "fast", medium: "medium", high: "high" },
  uploads: "Uploads at once", uploadsHint: "How many are sent at once. How many are worked on at once is up to the server.",
  uploading: (p) => `uploading ${p} %`, photoWaiting: (n, s) => `place ${n}` + (s == null ? "" : `, about ${s} s`), inQueue: "in the queue",
  enhancing: (p, s) => `${p} %` + (s == null ? "" : `, about ${s} s left`), recovering: "a worker was lost, another goes on",
  photoRefused: (s) => `the server is full, trying again in ${s} s`, photoDone: (s, w, h) => `done in ${s} s, ${w} × ${h}`,
  cancel: "Cancel", cancelled: "cancelled", save: "Save", compare: "Before and after", photoFailed: "not enhanced: ", photoGone: "the task is no longer known",
  photoReasons: {}, // the server says it in English
  firstTile: "First tile", firstPhoto: "First photo", donePhotos: "Done", inAll: "In all", tilesShown: "tiles shown",
});
Object.assign(WORDS.zh, {
  photosTitle: "照片增强", photosLead: "放入照片，看它们一块一块变清晰。",
  photosHint: "去除噪点，保留细节，尺寸放大一倍。等待中的每张照片都显示排队位置和时间。照片只保存在本机网关，一天后删除。",
  choose: "选择照片", level: "质量", levels: { fast: "快速", medium: "中等", high: "最佳" },
  uploads: "同时上传", uploadsHint: "这是同时发送的张数；同时处理几张由服务器决定。",
  uploading: (p) => `上传 ${p} %`, photoWaiting: (n, s) => `第 ${n} 位` + (s == null ? "" : `，约 ${s} 秒`), inQueue: "排队中",
  enhancing: (p, s) => `${p} %` + (s == null ? "" : `，还需约 ${s} 秒`), recovering: "工作进程丢失，另一个接着处理",
  photoRefused: (s) => `服务器已满，${s} 秒后重试`, photoDone: (s, w, h) => `${s} 秒完成，${w} × ${h}`,
  cancel: "取消", cancelled: "已取消", save: "保存", compare: "前后对比", photoFailed: "未能增强：", photoGone: "任务已不存在",
  photoReasons: {
    bad_request: "文件为空，或不是支持的格式（jpg、png、bmp、tiff、webp）", unsupported: "内容不是 JPEG、PNG、WebP、BMP 或 TIFF 图片",
    bad_image: "图片已损坏或不完整", too_large: "文件或图片尺寸超出上限", quota_exceeded: "存储配额已用完", no_workers: "没有运行照片模型",
    poison: "模型无法处理这张图片", worker_lost: "工作进程丢失", deadline_exceeded: "等待或处理超时",
  },
  firstTile: "第一块", firstPhoto: "第一张", donePhotos: "完成", inAll: "总用时", tilesShown: "已显示的块",
});
