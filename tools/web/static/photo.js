/** An image file in its own size. */
export async function readPhoto(file) {
  try {
    return await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "This file"} is no image that this browser can read.`);
  }
}

/** A canvas of the given size: the image scaled to cover it, centred, the rest cut off.
 *
 * So images of any size may be chosen, and only pixels of the painting's size travel.
 */
export function cover(image, width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  const scale = Math.max(width / image.width, height / image.height);
  const [w, h] = [image.width * scale, image.height * scale];
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#ffffff"; // under what is transparent
  context.fillRect(0, 0, width, height);
  context.drawImage(image, (width - w) / 2, (height - h) / 2, w, h);
  return canvas;
}

export const toDataUrl = (canvas) => canvas.toDataURL("image/png");

export async function fromUrl(url) {
  const image = Object.assign(new Image(), { src: url });
  await image.decode();
  return image;
}
