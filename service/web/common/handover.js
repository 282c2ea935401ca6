/** What one view leaves for another. */

/** Return a picture as Browse shows it, from a record of the API. */
export const itemOf = ({ key, metadata, thumbnail }) => ({ key, metadata, stored: thumbnail !== null });

export const handover = {
  chosen: null, // pictures for Browse: each with key, metadata and stored; partial if that is not all of its metadata
  where: "", // they were chosen
  asked: null, // the last answer of Ask, for the map: the name of its picture, and the keys of the pictures nearest to it
  mapJob: null, // the last job that has computed a map, for the map, which loads it
};
