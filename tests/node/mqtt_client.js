// Subscribes with one MQTT client and publishes with another: node mqtt_client.js ws://127.0.0.1:8000/mqtt
'use strict';

const mqtt = require('mqtt');

const [url] = process.argv.slice(2);
const sizes = [0, 1, 200, 20000, 300000];
const options = { keepalive: 1, reconnectPeriod: 0, connectTimeout: 10000, protocolVersion: 4 };

async function main() {
  const reader = await mqtt.connectAsync(url, options);
  const writer = await mqtt.connectAsync(url, options);
  const received = new Promise((resolve) => {
    let count = 0;
    reader.on('message', (topic, payload) => {
      console.log(topic, payload.length, payload.equals(Buffer.alloc(payload.length, 'x')));
      count += 1;
      if (count === 2 * sizes.length) resolve();
    });
  });
  const granted = await reader.subscribeAsync({ 'room/1': { qos: 1 }, 'room/2': { qos: 0 } });
  console.log('granted', granted.map((one) => one.qos).join(' '));
  for (const size of sizes) {
    await writer.publishAsync('room/1', Buffer.alloc(size, 'x'), { qos: 1 });
    await writer.publishAsync('room/2', Buffer.alloc(size, 'x'), { qos: 0 });
    await writer.publishAsync('room/3', 'nobody hears this', { qos: 1 });
  }
  await received;
  const answered = new Promise((resolve) => reader.on('packetreceive', (packet) => packet.cmd === 'pingresp' && resolve()));
  await answered; // It pings each second.
  console.log('pingresp');
  await Promise.all([reader.endAsync(), writer.endAsync()]);
}

main().then(() => process.exit(0), (error) => { console.log(String(error)); process.exit(1); });
