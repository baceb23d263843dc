// screenshot.mjs PERFETTO PLAYWRIGHT TRACE OUT.png [FROM_NS TO_NS]: run by screenshot.sh.
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { createRequire } from 'node:module';

const [perfetto, playwright, trace, image, from, to] = process.argv.slice(2);
if (!image) {
  console.error('usage: screenshot.sh TRACE OUT.png [FROM_NS TO_NS]');
  process.exit(1);
}
const { chromium } = createRequire(path.join(playwright, 'package.json'))('playwright-core');

// The UI's files and the trace, for this machine only.
const TYPES = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.wasm': 'application/wasm' };
const tracePath = '/trace/' + encodeURIComponent(path.basename(trace));
const server = http.createServer((request, response) => {
  const { pathname } = new URL(request.url, 'http://localhost');
  const file = pathname === tracePath ? trace : path.join(perfetto, pathname === '/' ? 'index.html' : pathname);
  const stream = fs.createReadStream(file);
  stream.on('error', () => response.writeHead(404).end());
  stream.on('open', () => {
    response.writeHead(200, { 'content-type': TYPES[path.extname(file)] ?? 'application/octet-stream' });
    stream.pipe(response);
  });
});
await new Promise(done => server.listen(0, '127.0.0.1', done));
const origin = `http://127.0.0.1:${server.address().port}`;

const browser = await chromium.launch({
  executablePath: '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update'],
});
let code = 0;
try {
  const page = await browser.newPage({ viewport: { width: 1600, height: 900 } });
  const route = new URLSearchParams({
    url: origin + tracePath,
    startupCommands: JSON.stringify([{ id: 'dev.perfetto.ExpandTracksByRegex', args: ['.*'] }]),
    ...(to && { visStart: from, visEnd: to }),
  });
  // The UI takes percent signs only, no plus for a space. In testing mode it shows no banners.
  await page.goto(`${origin}/?testing=1#!/?${route.toString().replaceAll('+', '%20')}`);
  await page.waitForFunction(() => /\S.* - Perfetto UI|Oops/.test(document.title + document.body.innerText), null,
    { timeout: 300_000 });
  await page.evaluate(() => window.waitForPerfettoIdle(1000));
  await page.screenshot({ path: image });
  const text = await page.evaluate(() => document.body.innerText);
  const wrong = text.match(/.*(Oops|import\s+error|could not be opened).*/i)?.[0];
  console.log(JSON.stringify({ title: await page.title(), wrong }));
  if (wrong) code = 2;
} finally {
  await browser.close();
  server.close();
}
process.exit(code);
